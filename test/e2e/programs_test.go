package e2e

import (
	"strings"
	"testing"
)

// TestPrograms runs what people run, in the image with a compiler.
func TestPrograms(t *testing.T) {
	u := newUser(t)
	for _, c := range []struct{ name, script, want string }{
		{"python", `python3 -c 'import threading, json, hashlib, multiprocessing, socket, select
ts = [threading.Thread(target=lambda: hashlib.sha256(b"x" * 100000).hexdigest()) for _ in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
a, b = socket.socketpair(); a.send(b"hi"); print(b.recv(2).decode(), json.dumps({"n": len(ts)}))'`, "hi {\"n\": 8}\n"},
		{"gcc", `cd /tmp && printf '#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n' > a.c && gcc -O2 -o a a.c && ./a`, "compiled\n"},
		{"git", `cd /tmp && export HOME=/tmp && git init -q r && cd r && git config user.email a@b && git config user.name n && echo x > f && git add f && git commit -qm one && git log --oneline | wc -l`, "1\n"},
		{"sqlite3", `cd /tmp && sqlite3 t.db 'create table t(n); insert into t values (1),(2),(39); select sum(n) from t;'`, "42\n"},
		{"200 processes", `for i in $(seq 200); do sleep 5 & done; jobs -p | wc -l; wait; echo done`, "200\ndone\n"},
		{"terminals", `python3 -c 'import pty, os
pid, fd = pty.fork()
if pid == 0: os.execvp("tty", ["tty"])
print(os.read(fd, 100).decode().startswith("/dev/pts/"))'`, "True\n"},
		{"namespaces", `unshare -Ur id -u`, "0\n"},
		{"loopback", `python3 -c 'import socket
s = socket.socket(socket.AF_INET6); s.bind(("::1", 0)); s.listen()
c = socket.create_connection(("::1", s.getsockname()[1])); print(s.accept()[1][0])'`, "::1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := &user{t, u.state}
			u.run("run", devImage, "--", "bash", "-c", c.script).want(t, 0, c.want)
		})
	}
}

// TestPipeline moves 1 GiB through a pipeline inside the guest and compares checksums.
func TestPipeline(t *testing.T) {
	u := newUser(t)
	const script = `cd /tmp && mkfifo p && { md5sum < p > a & } && head -c 1073741824 /dev/zero | tee p | md5sum > b; wait; cat a b`
	r := u.run("run", "--timeout", "20m", devImage, "--", "bash", "-c", script)
	sums := strings.Fields(r.stdout)
	if r.code != 0 || len(sums) != 4 || sums[0] != sums[2] || sums[0] != "cd573cfaace07e7949bc0c46028904ff" {
		t.Errorf("code %d, checksums %q\n%s", r.code, r.stdout, clip(r.stderr))
	}
}

// TestSizes boots guests at the edges of what is offered.
func TestSizes(t *testing.T) {
	u := newUser(t)
	for _, c := range []struct{ cpus, memory string }{{"1", "64m"}, {"2", "256m"}, {"4", "512m"}, {"1", "5g"}} {
		t.Run(c.cpus+" CPUs, "+c.memory, func(t *testing.T) {
			u := &user{t, u.state}
			r := u.run("run", "--cpus", c.cpus, "--memory", c.memory, image, "--", "sh", "-c", "nproc; awk '/MemTotal/ { print ($2 > 0) }' /proc/meminfo")
			r.want(t, 0, c.cpus+"\n1\n")
		})
	}
	t.Run("pmem root", func(t *testing.T) {
		u := &user{t, u.state}
		u.run("run", "--root-device", "pmem", image, "--", "sh", "-c", "grep -c pmem /proc/mounts; echo ok").want(t, 0, "0\nok\n")
	})
	t.Run("read-only root", func(t *testing.T) {
		u := &user{t, u.state}
		u.run("run", "--read-only", "-u", "0", image, "--", "sh", "-c", "touch /x 2>/dev/null || echo refused; touch /tmp/y && echo writable").want(t, 0, "refused\nwritable\n")
	})
}
