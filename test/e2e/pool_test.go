package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
