package policy

import (
	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

// execFile is the descriptor that the jail runs the program from (jailer.ExecFile).
const execFile = 1000

// Building is what the process may do from its first instruction until Running: start the Go runtime, read its
// configuration, make the VM. It begins before the exec, so it has the one that runs the program, and by descriptor. It
// stays on, so it has what Running has.
func Building() seccomp.Policy {
	var p seccomp.Policy
	for _, group := range []seccomp.Policy{goStart, kvmSetUp, enterGuest, saveMachine, descriptors} {
		p = append(p, group...)
	}
	have := map[string]bool{}
	for _, call := range p.Calls() {
		have[call] = true
	}
	for _, r := range Running() {
		if !have[r.Call] {
			p = append(p, r)
		}
	}
	return p
}

// goStart is the start of the program and of its runtime.
var goStart = seccomp.Policy{
	{Call: "execveat", Args: []seccomp.Arg{seccomp.Equal(0, execFile), seccomp.Equal(4, unix.AT_EMPTY_PATH)}, Why: "the jail's last step; the descriptor closes with it"},
	{Call: "write", Why: "the jail reports a failure; the VMM its start"},
	{Call: "exit_group", Why: "the process ends"},
	{Call: "arch_prctl", Why: "thread-local storage of the first thread"},
	{Call: "sched_getaffinity", Why: "how many processors there are"},
	{Call: "openat", Errno: uint16(unix.ENOENT), Why: "the runtime looks for the size of huge pages; there is no file"},
	{Call: "mmap", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC)}, Why: "the heap, guest memory, the vCPUs' run pages"},
	{Call: "munmap", Why: "what a mapping took too much"},
	{Call: "mprotect", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC)}, Why: "guest memory between its guards"},
	{Call: "madvise", Why: "huge pages for the guest and none for the heap"},
	{Call: "rt_sigaction", Why: "handlers of the runtime and of vCPU kicks"},
	{Call: "rt_sigprocmask", Why: "thread start and signal delivery"},
	{Call: "rt_sigreturn", Why: "return from a signal handler"},
	{Call: "sigaltstack", Why: "thread start and end"},
	{Call: "gettid", Why: "thread start"},
	{Call: "getpid", Why: "preemption names the process"},
	{Call: "tgkill", Why: "preemption by SIGURG"},
	{Call: "clone", Args: []seccomp.Arg{seccomp.Masked(0, ^uint64(unix.CLONE_SETTLS), goClone)}, Why: "a new thread of the runtime, never a process"},
	{Call: "futex", Why: "every lock and park of the runtime"},
	{Call: "nanosleep", Why: "the runtime's monitor thread and spinning"},
	{Call: "sched_yield", Why: "spinning on a runtime lock"},
	{Call: "restart_syscall", Why: "the kernel resumes a sleep that a freeze of the cgroup interrupted"},
	{Call: "exit", Why: "a thread locked by its goroutine ends with it"},
	{Call: "getrandom", Why: "seeds of the runtime; the identifier of the VM's generation"},
	{Call: "prlimit64", Why: "package os raises the soft limit of descriptors"},
	{Call: "prctl", Why: "a look at the jail; not dumpable; no new privileges"},
	{Call: "capget", Why: "a look at the jail"},
	{Call: "faccessat", Why: "a look at the jail"},
	{Call: "seccomp", Args: []seccomp.Arg{seccomp.Equal(0, unix.SECCOMP_SET_MODE_FILTER)}, Why: "the next stage"},
}

// kvmSetUp is what makes a VM, ioctl by ioctl (linux/kvm.h).
var kvmSetUp = ioctls(
	ioctl{0xae00, "KVM_GET_API_VERSION"},
	ioctl{0xae01, "KVM_CREATE_VM"},
	ioctl{0xae03, "KVM_CHECK_EXTENSION"},
	ioctl{0xae04, "KVM_GET_VCPU_MMAP_SIZE"},
	ioctl{0xc008ae05, "KVM_GET_SUPPORTED_CPUID"},
	ioctl{0x4020ae46, "KVM_SET_USER_MEMORY_REGION"},
	ioctl{0xae47, "KVM_SET_TSS_ADDR"},
	ioctl{0x4008ae48, "KVM_SET_IDENTITY_MAP_ADDR"},
	ioctl{0xae60, "KVM_CREATE_IRQCHIP"},
	ioctl{0x8208ae63, "KVM_SET_IRQCHIP"},
	ioctl{0xae41, "KVM_CREATE_VCPU"},
	ioctl{0xaea3, "KVM_GET_TSC_KHZ"},
	ioctl{0x4008ae90, "KVM_SET_CPUID2"},
	ioctl{0x4040ae79, "KVM_IOEVENTFD"},
	ioctl{0x4020ae76, "KVM_IRQFD"},
	ioctl{0x4008ae89, "KVM_SET_MSRS"},
	ioctl{0x4138ae84, "KVM_SET_SREGS"},
	ioctl{0x4140aecd, "KVM_SET_SREGS2"},
	ioctl{0x4090ae82, "KVM_SET_REGS"},
	ioctl{0x5000aea5, "KVM_SET_XSAVE, of a snapshot"},
	ioctl{0x4188aea7, "KVM_SET_XCRS, of a snapshot"},
	ioctl{0x4400ae8f, "KVM_SET_LAPIC, of a snapshot"},
	ioctl{0x4080aea2, "KVM_SET_DEBUGREGS, of a snapshot"},
	ioctl{0x4040aea0, "KVM_SET_VCPU_EVENTS, of a snapshot"},
	ioctl{0x4004ae99, "KVM_SET_MP_STATE, of a snapshot"},
	ioctl{0x4030ae7b, "KVM_SET_CLOCK, of a snapshot"},
	ioctl{0x4008ae61, "KVM_IRQ_LINE: the guest learns that it has woken"},
)

// descriptors is what is done to those that came with the configuration, and with it.
var descriptors = seccomp.Policy{
	{Call: "read", Why: "the configuration"},
	{Call: "pread64", Why: "the kernel goes into guest memory"},
	{Call: "close", Why: "/dev/kvm, the kernel, the configuration"},
	{Call: "fstat", Why: "how large a disk is"},
	{Call: "fstatfs", Why: "may a read of a disk wait"},
	{Call: "lseek", Why: "where a disk has holes"},
	{Call: "fcntl", Why: "close-on-exec and non-blocking for what was inherited"},
	{Call: "eventfd2", Why: "kicks and interrupts; the poller's wake-up"},
	{Call: "epoll_create1", Why: "the poller"},
	{Call: "epoll_ctl", Why: "a descriptor that joins or leaves the poller"},
	{Call: "epoll_pwait", Why: "the poller"},
}
