package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/test/world"
)

// shelf is one row of spore pool status.
type shelf struct {
	Ready        int
	Hits, Misses int
}

func (u *user) pool() shelf {
	u.t.Helper()
	var status struct{ Shells []shelf }
	if err := json.Unmarshal([]byte(u.must("pool", "status", "--json")), &status); err != nil || len(status.Shells) == 0 {
		u.t.Fatalf("pool: %+v, %v", status, err)
	}
	return status.Shells[0]
}

// TestPool wakes sandboxes in shells, and does without when there is none any more.
func TestPool(t *testing.T) {
	u := newUser(t)
	if r := u.run("pool", "status"); r.code != 125 || !strings.Contains(r.stderr, "spore pool start") {
		t.Errorf("status without a pool: code %d, %q", r.code, r.stderr)
	}
	u.must("run", image, "true") // leaves the template
	u.must("pool", "start", "--depth", "1")
	t.Cleanup(func() { u.run("pool", "stop") })
	u.must("pool", "start") // twice is no error
	if got := u.pool(); got != (shelf{Ready: 1}) {
		t.Errorf("a new pool: %+v", got)
	}
	u.run("run", "--hostname", "woken", image, "sh", "-c", "hostname >/tmp/x; cat /tmp/x; exit 3").want(t, 3, "woken\n")
	u.must("run", "-d", "--name", "c", image, "sh", "-c", counter)
	at := u.countsPast("c", 2)
	if got := u.pool(); got.Hits+got.Misses != 2 || got.Hits == 0 {
		t.Errorf("after two runs: %+v", got)
	}
	if posture := u.run("lab", "posture", "c"); posture.code != 0 {
		t.Errorf("a shell out of the pool is not held as claimed:\n%s%s", posture.stdout, posture.stderr)
	}
	u.must("snapshot", "take", "c", "s")

	// The pool dies: its sandboxes go on and end well, and the next one does without.
	daemon := u.poolDaemon()
	if err := unix.Kill(daemon, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	u.countsPast("c", at)
	u.must("kill", "c")
	u.run("run", image, "echo", "without").want(t, 0, "without\n")
	u.must("rm", "c")
	for end := time.Now().Add(commandLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if left := u.left(); left == "" {
			return
		}
		u.must("ls") // sweeps, once their processes are gone
	}
	t.Errorf("left: %s", u.left())
}

// poolDaemon is the process that owns the shells.
func (u *user) poolDaemon() int {
	u.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "pool\x00serve\x00") || !strings.Contains(string(b), u.state) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil {
			return pid
		}
	}
	u.t.Fatal("no pool daemon")
	return 0
}

// TestPooledForwarder has spore-net wait in its place: the pool's child carries the guest's words, in the jail that it would have had, and
// nothing is left of it when the sandbox, or the pool, has ended.
func TestPooledForwarder(t *testing.T) {
	u, w := newUser(t), newWorld(t)
	fetch := []string{"--network", "nat", "--dns", world.DNS.String(), "--allow", "allowed.test", image, "python3", "-c",
		"import urllib.request; print(urllib.request.urlopen('http://allowed.test/pooled').read().decode())"}
	u.must(append([]string{"run"}, fetch...)...) // leaves the template
	u.must("pool", "start", "--depth", "1", "--network", "nat")
	t.Cleanup(func() { u.run("pool", "stop") })
	daemon := u.poolDaemon()
	waiting := childrenNamed(t, daemon, "spore-net")
	if len(waiting) != 1 {
		t.Fatalf("%d spore-nets wait", len(waiting))
	}
	w.Forget()
	if got := u.must(append([]string{"run"}, fetch...)...); !strings.Contains(got, "/pooled") || len(w.Reached()) == 0 {
		t.Errorf("through the pooled one came %q, %v", got, w.Reached())
	}
	if slices.Contains(childrenNamed(t, daemon, "spore-net"), waiting[0]) {
		t.Error("the spore-net that waited was not taken, or has not ended")
	}
	u.must("pool", "stop")
	for end := time.Now().Add(commandLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if left := u.left(); left == "" {
			return
		}
		u.must("ls")
	}
	t.Errorf("left: %s", u.left())
}

// TestLostForwarder kills spore-net under a sandbox: that goes on without a network, and its outcome says so.
func TestLostForwarder(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "c", "--network", "nat", image, "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.2; done; exit 4")
	supervisor := u.supervisorOf("c")
	for _, pid := range childrenNamed(t, supervisor, "spore-net") {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(commandLimit); len(childrenNamed(t, supervisor, "spore-net")) > 0; time.Sleep(20 * time.Millisecond) { // until it has been waited for
		if time.Now().After(end) {
			t.Fatal("spore-net does not end")
		}
	}
	u.must("exec", "c", "touch", "/tmp/end")
	if r := u.run("wait", "c"); strings.TrimSpace(r.stdout) != "4" {
		t.Errorf("wait says %q, %q", r.stdout, r.stderr)
	}
	if got := u.must("inspect", "c"); !strings.Contains(got, "no network any more") || !strings.Contains(got, "signal: killed") {
		t.Errorf("the outcome does not say so: %s", clip(got))
	}
}

// supervisorOf is the process that owns a sandbox.
func (u *user) supervisorOf(ref string) int {
	u.t.Helper()
	var all []struct {
		Supervisor int `json:"supervisor_pid"`
	}
	if err := json.Unmarshal([]byte(u.must("inspect", ref)), &all); err != nil || len(all) != 1 || all[0].Supervisor == 0 {
		u.t.Fatalf("inspect: %+v, %v", all, err)
	}
	return all[0].Supervisor
}

// childrenNamed are the children of a process that run a program of that name.
func childrenNamed(t *testing.T, parent int, name string) (all []int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		var pid, ppid int
		var comm, state string
		if _, err := fmt.Sscanf(string(b), "%d %s %s %d", &pid, &comm, &state, &ppid); err == nil && comm == "("+name+")" && ppid == parent {
			all = append(all, pid)
		}
	}
	return all
}
