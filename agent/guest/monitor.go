package guest

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// monitorSlack is how much later than it means to the runtime's monitor may look: as long as it sleeps at most when there is
	// nothing to see.
	monitorSlack = 10 * time.Millisecond

	// programSlack is the kernel's own for programs.
	programSlack = 50 * time.Microsecond
)

// slackenMonitor lets the runtime's monitor thread oversleep. While the agent does anything at all, it looks every 20 µs whether a thread is
// held up in a system call. For a guest each of these is two exits, when the timer is set and when it goes off: a sixth of all exits
// of a wake. What is held up waits longer for another thread to take over. That it cannot be done is no failure.
func slackenMonitor() {
	if id, err := monitor(); err == nil {
		_ = writeFile("/proc/"+strconv.Itoa(id)+"/timerslack_ns", strconv.FormatInt(monitorSlack.Nanoseconds(), 10))
	}
}

// monitor is the number of the runtime's monitor thread: the first that a program in Go makes. If another release of Go does it otherwise,
// a thread that it has made for something else oversleeps.
func monitor() (int, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	first := 0
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil && id != os.Getpid() && (first == 0 || id < first) {
			first = id
		}
	}
	if err == nil && first == 0 {
		err = os.ErrNotExist
	}
	return first, err
}

// tighten gives the calling thread, which is locked, the slack that a program has which it starts. A thread has that of the one that
// made it, so some have the monitor's.
func tighten() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(programSlack.Nanoseconds()), 0, 0, 0))
}
