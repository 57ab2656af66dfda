package jailer

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

// planMemory is how much memory a plan has, in bytes: for its steps, a filter of the largest size, and maxStrings.
const planMemory = 256 << 10

// newPlan makes an empty plan. The caller frees it when the child runs its program or has ended.
func newPlan() (*plan, error) {
	b, err := unix.Mmap(-1, 0, planMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory of a plan: %w", err)
	}
	p := &plan{memory: b}
	p.failure = hold(p, failure{})
	return p, nil
}

func (p *plan) free() {
	if err := unix.Munmap(p.memory); err != nil {
		panic("bug: free a plan: " + err.Error())
	}
}

// holdAll copies v into p's memory and returns the address. v has no pointers into the heap, which the child may not have.
func holdAll[T any](p *plan, v ...T) *T {
	const align = 8
	size := (len(v)*int(unsafe.Sizeof(v[0])) + align - 1) &^ (align - 1)
	if size > len(p.memory)-p.used {
		panic("bug: a plan larger than its memory")
	}
	at := (*T)(unsafe.Pointer(&p.memory[p.used])) // SAFETY: aligned, with room for all of v
	p.used += size
	copy(unsafe.Slice(at, len(v)), v)
	return at
}

func hold[T any](p *plan, v T) *T { return holdAll(p, v) }

// address is for an argument of a call: what v points to is outside the heap and lives as long as its plan.
func address[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

func (p *plan) buffer(n int) uintptr { return address(holdAll(p, make([]byte, n)...)) }

// text is a string as C has it; the caller's has no zero in it (Config.Validate).
func (p *plan) text(s string) uintptr { return address(holdAll(p, append([]byte(s), 0)...)) }

// vector is a list of strings as execve(2) has it.
func (p *plan) vector(list []string) uintptr {
	v := make([]uintptr, len(list)+1)
	for i, s := range list {
		v[i] = p.text(s)
	}
	return address(holdAll(p, v...))
}

func (p *plan) rlimit(value uint64) uintptr {
	return address(hold(p, unix.Rlimit{Cur: value, Max: value}))
}

// filter is a compiled seccomp program as seccomp(2) takes it.
func (p *plan) filter(program []byte) (uintptr, error) {
	f, err := seccomp.Filter(program)
	if err != nil {
		return 0, err
	}
	return address(hold(p, unix.SockFprog{Len: uint16(len(f)), Filter: holdAll(p, f...)})), nil
}

// steps are the calls as the child reads them.
func (p *plan) steps() *step {
	all := make([]step, len(p.calls))
	for i, c := range p.calls {
		all[i] = c.step
	}
	return holdAll(p, all...)
}

// haveCoreScheduling asks for this thread's cookie, which a kernel or processor without it refuses.
func haveCoreScheduling() bool {
	var cookie uint64
	_, _, errno := unix.Syscall6(unix.SYS_PRCTL, unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, 0, unix.PR_SCHED_CORE_SCOPE_THREAD, uintptr(unsafe.Pointer(&cookie)), 0)
	return errno == 0
}

// capabilities is a header and empty sets for capset(2).
func (p *plan) capabilities() (header, none uintptr) {
	return address(hold(p, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})), address(hold(p, [2]unix.CapUserData{}))
}
