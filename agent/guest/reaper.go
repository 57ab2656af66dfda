package guest

import (
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ended is how a child ended.
type ended struct {
	status unix.WaitStatus
	usage  unix.Rusage
}

// reaper is the only one who waits for children, our own and the orphans that PID 1 inherits.
type reaper struct {
	// mu is held from fork to registration, so that no child is reaped before it is known, and from reaping to
	// deregistration, so that a pid in waiting is never another process's.
	mu      sync.Mutex
	waiting map[int]chan ended
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan ended{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			r.reap()
		}
	}()
	return r
}

// reap collects every child that has ended. One SIGCHLD may stand for several.
func (r *reaper) reap() {
	for r.reapOne() {
	}
}

// reapOne collects one child and reports whether there may be more.
func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e ended
	pid, err := unix.Wait4(-1, &e.status, unix.WNOHANG, &e.usage)
	if err == unix.EINTR {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if c := r.waiting[pid]; c != nil {
		delete(r.waiting, pid)
		c <- e // has room
	}
	return true
}

// start forks and executes, and returns where the end will be announced.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (pid int, end <-chan ended, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := tighten(); err != nil {
		return 0, nil, err
	}
	c := make(chan ended, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	r.waiting[pid] = c
	return pid, c, nil
}

// signal sends a signal to the group of a child that has not been reaped.
func (r *reaper) signal(pid int, s unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[pid] == nil {
		return errNoProcess
	}
	return unix.Kill(-pid, s)
}
