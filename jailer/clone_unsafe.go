package jailer

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime's own preparations for a fork: this thread's signals blocked until afterFork, so that none arrives in a
// child that still has our handlers.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// cloneArgs is struct clone_args, its third version (linux/sched.h).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// failure is what the child writes when a call of its plan fails.
type failure struct {
	index uint32
	errno uint32
}

// cloneAndRun makes the child, which carries out the steps and never returns.
//
//go:noescape
func cloneAndRun(args *cloneArgs, size uintptr, steps *step, n uintptr, f *failure, report uintptr) (pid uintptr)

// arena is the unit in which the Go runtime takes addresses for its heap, in bytes, and their alignment.
const arena = 64 << 20

// clone makes a child that carries out p and writes to report what failed. The child has our memory, not a copy of it
// (CLONE_VM): to copy the page tables of a large supervisor, and to throw them away at exec, costs more than the rest
// of the plan. Only where exec(2) does not take such a child into its time namespace it is born there, with a copy of
// all but the heap, of which it needs nothing. p must live until the child runs its program or has ended.
func clone(flags uint64, c *Config, o offer, p *plan, report int) (pid, pidFD int, errno syscall.Errno) {
	fd := hold(p, int32(-1)) // not on this stack, which may move
	args := &cloneArgs{flags: flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD), pidFD: uint64(address(fd))}
	if o.time && !o.timeExec {
		args.flags |= unix.CLONE_NEWTIME
		syscall.ForkLock.Lock() // children that other packages make may need the heap
		defer syscall.ForkLock.Unlock()
		heap := uintptr(unsafe.Pointer(&p.calls[0])) &^ (arena - 1)
		advise(heap, unix.MADV_DONTFORK)
		defer advise(heap, unix.MADV_DOFORK)
	} else {
		args.flags |= unix.CLONE_VM
	}
	if c.Cgroup != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(c.Cgroup.Fd())
	}
	steps := p.steps()
	beforeFork() // from here on the runtime allows no call that checks the stack, until afterFork
	r := cloneAndRun(args, unsafe.Sizeof(*args), steps, uintptr(len(p.calls)), p.failure, uintptr(report))
	afterFork()
	if r > ^uintptr(4095) {
		return 0, -1, syscall.Errno(-r)
	}
	return int(r), int(*fd), 0
}

// advise says of an arena whether a child gets a copy of it. One that gets a copy against it is only slower.
func advise(heap uintptr, how uintptr) {
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, heap, arena, how)
}
