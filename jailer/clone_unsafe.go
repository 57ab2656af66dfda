package jailer

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime's own preparations for a fork: signals blocked, and their handlers reset in the child.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args, its first version (linux/sched.h).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// failure is what the child writes when a call of its plan fails.
type failure struct {
	index uint32
	errno uint32
}

// clone makes a child that carries out p and writes to report what failed. It returns in the parent only.
func clone(flags uint64, p *plan, report int) (pid, pidFD int, errno syscall.Errno) {
	fd := new(int32)
	*fd = -1
	args := &cloneArgs{flags: flags | unix.CLONE_PIDFD, exitSignal: uint64(unix.SIGCHLD), pidFD: uint64(uintptr(unsafe.Pointer(fd)))}
	f := new(failure)
	id, errno := cloneAndRun(args, p.calls, f, uintptr(report))
	afterFork()
	runtime.KeepAlive(p)
	return int(id), int(*fd), errno
}

// cloneAndRun never returns in the child. There it may not allocate, lock, grow the stack or be preempted: it makes raw
// system calls and nothing else.
//
//go:noinline
//go:norace
//go:nocheckptr
func cloneAndRun(args *cloneArgs, calls []call, f *failure, report uintptr) (uintptr, syscall.Errno) {
	beforeFork() // from here on the runtime allows no call that checks the stack, until afterFork
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	afterForkInChild()
	for i := range calls {
		c := &calls[i]
		n, _, errno := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if errno == 0 && c.one && n != 1 {
			errno = syscall.EPIPE
		}
		if errno != 0 {
			f.index, f.errno = uint32(i), uint32(errno)
			syscall.RawSyscall(unix.SYS_WRITE, report, uintptr(unsafe.Pointer(f)), unsafe.Sizeof(*f))
			break
		}
		if c.report != 0 {
			report = c.report
		}
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}
