package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLifecycle(t *testing.T) {
	u := newUser(t)
	id := strings.TrimSpace(u.run("create", "--name", "box", "-u", "0", "-l", "tier=test", image, "--", "sh", "-c", "echo started; sleep 3600").stdout)
	if len(id) != 12 {
		t.Fatalf("create printed %q", id)
	}
	if r := u.run("create", "--name", "box", image, "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "taken") {
		t.Errorf("a second box: %+v", r)
	}
	if r := u.run("exec", "box", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "spore start") {
		t.Errorf("exec before start: %+v", r)
	}
	u.run("start", "box").want(t, 0, "box\n")
	if got := u.run("ls", "--filter", "label=tier=test", "-q").stdout; got != id+"\n" {
		t.Errorf("ls prints %q, want %s", got, id)
	}
	u.run("exec", "box", "--", "sh", "-c", "echo kept > /root/file; sync; echo $((6 * 7))").want(t, 0, "42\n")
	u.run("exec", "-u", "65534:65534", "-w", "/tmp", "-e", "X=1", "box", "--", "sh", "-c", "id -u; pwd; echo $X").want(t, 0, "65534\n/tmp\n1\n")
	u.run("exec", "box", "--", "/no/such").want(t, 127, "")
	u.feed("abc", "exec", "-i", "box", "--", "cat").want(t, 0, "abc")
	if r := u.run("rm", "box"); r.code == 0 {
		t.Error("rm removes a running sandbox")
	}
	if r := u.run("image", "rm", image); r.code == 0 || !strings.Contains(r.stderr, "box") {
		t.Errorf("the image of a named sandbox is removed: %+v", r)
	}
	var stats []struct {
		Guest struct {
			Pids        int   `json:"pids"`
			MemoryTotal int64 `json:"memory_total"`
		} `json:"guest"`
	}
	if r := u.run("stats", "--json", "box"); json.Unmarshal([]byte(r.stdout), &stats) != nil || len(stats) != 1 || stats[0].Guest.Pids < 1 || stats[0].Guest.MemoryTotal < 1<<27 {
		t.Errorf("stats: %+v", r)
	}
	if r := u.run("logs", "box"); r.stdout != "started\n" {
		t.Errorf("logs: %+v", r)
	}
	u.run("stop", "-t", "2s", "box").want(t, 0, "box\n")
	u.run("start", "box").want(t, 0, "box\n")
	u.run("exec", "box", "--", "cat", "/root/file").want(t, 0, "kept\n")
	u.run("kill", "box").want(t, 0, "box\n")
	u.run("wait", "box").want(t, 0, "137\n")
	u.run("rm", "box").want(t, 0, "box\n")
	if r := u.run("inspect", "box"); r.code != 125 {
		t.Errorf("inspect after rm: %+v", r)
	}
}

func TestDetached(t *testing.T) {
	u := newUser(t)
	id := strings.TrimSpace(u.run("run", "-d", image, "--", "sh", "-c", "echo out; echo err >&2; exit 5").stdout)
	u.run("wait", id).want(t, 0, "5\n")
	if r := u.run("logs", id); r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("logs: %+v", r)
	}
	if r := u.run("start", id); r.code != 125 || !strings.Contains(r.stderr, "named") {
		t.Errorf("an ephemeral sandbox starts again: %+v", r)
	}
	u.run("rm", id).want(t, 0, id+"\n")
}

func TestCopy(t *testing.T) {
	u := newUser(t)
	u.run("run", "-d", "--name", "cp", image, "--", "sleep", "3600")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<18)
	for name, text := range map[string]string{"a": "alpha", "sub/big": big} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	u.run("cp", tree, "cp:/tmp/").want(t, 0, "")
	u.run("exec", "cp", "--", "sh", "-c", "cat /tmp/tree/a; wc -c < /tmp/tree/sub/big; stat -c %a /tmp/tree/a").want(t, 0, "alpha4194304\n640\n")
	back := filepath.Join(dir, "back")
	u.run("cp", "cp:/tmp/tree", back).want(t, 0, "")
	if got, err := os.ReadFile(filepath.Join(back, "sub", "big")); err != nil || string(got) != big {
		t.Errorf("copied back %d bytes, %v", len(got), err)
	}
	if r := u.run("cp", "cp:/no/such", dir); r.code == 0 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("a copy of nothing: %+v", r)
	}
	// AG-04: a guest whose tree has links that lead out of it.
	u.run("exec", "cp", "--", "sh", "-c", "mkdir /tmp/evil && ln -s /etc /tmp/evil/etc && ln -s ../../.. /tmp/evil/up")
	if r := u.run("cp", "cp:/tmp/evil", filepath.Join(dir, "evil")); r.code == 0 || !strings.Contains(r.stderr, "refused") {
		t.Errorf("AG-04: links out of the tree: %+v", r)
	}
}

// vmmOf is the pid of a running sandbox's VMM.
func (u *user) vmmOf(ref string) int {
	u.t.Helper()
	var found []struct {
		VMM int `json:"vmm_pid"`
	}
	r := u.run("inspect", ref)
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil || len(found) != 1 || found[0].VMM == 0 {
		u.t.Fatalf("inspect %s: %v\n%s", ref, err, r.stdout)
	}
	return found[0].VMM
}

// TestLostGuest kills the VMM under a waiting exec: every call must end, with an error.
func TestLostGuest(t *testing.T) {
	u := newUser(t)
	u.run("run", "-d", "--name", "lost", image, "--", "sleep", "3600")
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	waiting := u.command(ctx, "exec", "lost", "--", "sh", "-c", "echo ready; sleep 3600")
	out, err := waiting.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatalf("exec: %v", err)
	}
	if err := unix.Kill(u.vmmOf("lost"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err == nil || waiting.ProcessState.ExitCode() != 125 {
		t.Errorf("exec on a lost guest: %v", err)
	}
	u.run("wait", "lost").want(t, 0, "125\n")
	if r := u.run("inspect", "lost"); !strings.Contains(r.stdout, `"outcome": "vmm-crash"`) {
		t.Errorf("inspect: %s", r.stdout)
	}
}

// TestLostSupervisor kills the supervisor: the VMM must go with it, and the record be set right.
func TestLostSupervisor(t *testing.T) {
	u := newUser(t)
	u.run("run", "-d", "--name", "orphan", image, "--", "sleep", "3600")
	vmm := u.vmmOf("orphan")
	var found []struct {
		Supervisor int `json:"supervisor_pid"`
	}
	if err := json.Unmarshal([]byte(u.run("inspect", "orphan").stdout), &found); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(vmm, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.Kill(found[0].Supervisor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(commandLimit.Milliseconds())); n != 1 {
		t.Fatalf("the VMM outlives its supervisor: %v", err)
	}
	if r := u.run("inspect", "orphan"); !strings.Contains(r.stdout, `"outcome": "host-error"`) {
		t.Errorf("inspect: %s", r.stdout)
	}
	u.run("start", "orphan").want(t, 0, "orphan\n")
}

// TestMemoryOfVMM holds the VMM to its bar: resident memory that is not guest RAM.
func TestMemoryOfVMM(t *testing.T) {
	const bar = 5 << 20 // bytes
	u := newUser(t)
	u.run("run", "-d", "--name", "rss", "--memory", "128m", image, "--", "sleep", "3600")
	out, err := exec.Command("cat", "/proc/"+strconv.Itoa(u.vmmOf("rss"))+"/smaps").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := residentBesides(string(out), 128<<20); got > bar {
		t.Errorf("the VMM takes %d KiB beside guest RAM, more than %d", got>>10, bar>>10)
	} else {
		t.Logf("the VMM takes %d KiB beside guest RAM", got>>10)
	}
}

// residentBesides sums up Rss of all mappings but those as large as guest RAM.
func residentBesides(smaps string, ram int64) int64 {
	var sum, size int64
	for line := range strings.Lines(smaps) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Size:":
			size = n << 10
		case "Rss:":
			if size < ram {
				sum += n << 10
			}
		}
	}
	return sum
}

// TestSignalsToInit sends PID 1, whose end would be the guest's, every signal that there is; then it still does its work.
func TestSignalsToInit(t *testing.T) {
	u := newUser(t)
	u.run("run", "-d", "--rm", "--name", "box", "-u", "0", image, "--", "sleep", "600")
	u.run("exec", "-u", "0", "box", "--", "sh", "-c", "cat /proc/1/comm; for s in $(seq 1 31) $(seq 34 64); do kill -$s 1 || echo $s; done").want(t, 0, "init\n")
	u.run("exec", "box", "--", "sh", "-c", "echo alive; exit 3").want(t, 3, "alive\n")
	u.run("kill", "box").want(t, 0, "box\n")
}

// TestExecOfWhoInsists: the third interrupt ends an exec, though the guest stands still and takes none.
func TestExecOfWhoInsists(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "still", image, "sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := u.command(ctx, "exec", "still", "sh", "-c", "echo begun; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	u.must("pause", "still")
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	again := time.NewTicker(50 * time.Millisecond) // signals that wait for the same process are one
	defer again.Stop()
	for ended := false; !ended; {
		select {
		case <-over:
			ended = true
		case <-again.C:
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(errs.String(), "interrupted three times") {
		t.Errorf("code %d, %s", code, clip(errs.String()))
	}
	u.must("resume", "still")
	u.run("exec", "still", "echo", "goes on").want(t, 0, "goes on\n")
}

// TestLateDevices: the entropy device and the balloon, which a boot does not wait for, work in a guest that wakes, and soon in one that boots for itself.
func TestLateDevices(t *testing.T) {
	u := newUser(t)
	const both = `[ -e /sys/bus/virtio/drivers/virtio_balloon/virtio[0-9]* ] && [ -e /sys/bus/virtio/drivers/virtio_rng/virtio[0-9]* ]`
	u.must("run", image, "true") // makes the template
	u.run("run", image, "sh", "-c", both).want(t, 0, "")
	u.run("run", "--cold", "--timeout", "2m", image, "sh", "-c", "until "+both+"; do sleep 0.1; done").want(t, 0, "")
}
