package guest

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// programSlack is how late the timers of a program may be: the kernel's own measure.
const programSlack = 50 * time.Microsecond

// tighten gives the calling thread, which is locked, the slack that a program has which it starts. A thread has that of the one that
// made it, so some have the monitor's (internal/sysmon).
func tighten() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(programSlack.Nanoseconds()), 0, 0, 0))
}
