package guest

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/sysmon"
)

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
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(sysmon.Slack.Nanoseconds()), 0, 0, 0); err != nil {
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
