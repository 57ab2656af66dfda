package guest

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func slack(t *testing.T, thread int) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(thread) + "/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n)
}

// TestSlackenMonitor: one thread oversleeps, and not the one that the program began with.
func TestSlackenMonitor(t *testing.T) {
	needsRoot(t)
	id, err := monitor()
	if err != nil || id == os.Getpid() {
		t.Fatalf("the monitor is thread %d of %d, %v", id, os.Getpid(), err)
	}
	before := slack(t, id)
	slackenMonitor()
	defer writeFile("/proc/"+strconv.Itoa(id)+"/timerslack_ns", strconv.FormatInt(before.Nanoseconds(), 10))
	if got := slack(t, id); got != monitorSlack {
		t.Errorf("the monitor oversleeps by up to %s, want %s", got, monitorSlack)
	}
	if got := slack(t, os.Getpid()); got == monitorSlack {
		t.Errorf("the first thread oversleeps by up to %s too", got)
	}
}

// TestSlackOfPrograms: a program has the kernel's own slack, whatever thread starts it.
func TestSlackOfPrograms(t *testing.T) {
	needsRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	runtime.LockOSThread() // for good: the thread is not as it was
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(monitorSlack.Nanoseconds()), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	_, end, err := oneReaper().start("/bin/cat", []string{"cat", "/proc/self/timerslack_ns"}, &syscall.ProcAttr{Files: []uintptr{0, w.Fd(), 2}})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	said, err := io.ReadAll(r)
	if e := <-end; err != nil || e.status.ExitStatus() != 0 || string(said) != strconv.FormatInt(programSlack.Nanoseconds(), 10)+"\n" {
		t.Errorf("%q, status %d, %v; want %s", said, e.status.ExitStatus(), err, programSlack)
	}
}
