package jailer

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

// What calls point to lives as long as their plan, in memory that the collector does not move: the child has it at the
// same addresses.

// hold keeps v and returns its address.
func hold[T any](p *plan, v *T) uintptr {
	p.held = append(p.held, v)
	return uintptr(unsafe.Pointer(v)) // SAFETY: used as long as p.held has v, and in the child's copy of it
}

func (p *plan) buffer(n int) uintptr {
	b := make([]byte, n)
	return hold(p, &b[0])
}

// text is a string as C has it; the caller's has no zero in it (Config.Validate).
func (p *plan) text(s string) uintptr {
	b := append([]byte(s), 0)
	return hold(p, &b[0])
}

// vector is a list of strings as execve(2) has it.
func (p *plan) vector(list []string) uintptr {
	v := make([]uintptr, len(list)+1)
	for i, s := range list {
		v[i] = p.text(s)
	}
	return hold(p, &v[0])
}

func (p *plan) rlimit(value uint64) uintptr {
	return hold(p, &unix.Rlimit{Cur: value, Max: value})
}

// filter is a compiled seccomp program as seccomp(2) takes it.
func (p *plan) filter(program []byte) (uintptr, error) {
	f, err := seccomp.Filter(program)
	if err != nil {
		return 0, err
	}
	p.held = append(p.held, f)
	return hold(p, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}), nil
}

// haveCoreScheduling asks for this thread's cookie, which a kernel or processor without it refuses.
func haveCoreScheduling() bool {
	var cookie uint64
	_, _, errno := unix.Syscall6(unix.SYS_PRCTL, unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, 0, unix.PR_SCHED_CORE_SCOPE_THREAD, uintptr(unsafe.Pointer(&cookie)), 0)
	return errno == 0
}

// capabilities is a header and empty sets for capset(2).
func (p *plan) capabilities() (header, none uintptr) {
	return hold(p, &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}), hold(p, &[2]unix.CapUserData{})
}
