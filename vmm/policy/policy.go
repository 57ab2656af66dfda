// Package policy is the system-call policy of spore-vmm: which calls the process may make at each stage of its life,
// each with its reason. The compiled programs beside it are made from the tables by "go generate ./vmm/policy"; a test
// holds them against the tables for every system call number.
//
// The stages stack, and a later one only narrows: the process is born with building, all its threads get running before
// the guest's first instruction, and each vCPU's thread gets vcpu on top.
package policy

import (
	_ "embed" // the compiled programs

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

//go:generate go run ./compile

// The compiled stages, arrays of struct sock_filter.
var (
	//go:embed building_amd64.bpf
	BuildingProgram []byte
	//go:embed running_amd64.bpf
	RunningProgram []byte
	//go:embed vcpu_amd64.bpf
	VCPUProgram []byte
)

// Stage is a policy with its name and its compiled form.
type Stage struct {
	Name    string
	Policy  seccomp.Policy
	Program []byte
}

// Stages returns all, in the order in which they are put on.
func Stages() []Stage {
	return []Stage{
		{"building", Building(), BuildingProgram},
		{"running", Running(), RunningProgram},
		{"vcpu", VCPU(), VCPUProgram},
	}
}

// goClone are the only clone flags the Go runtime uses: a thread of this process, nothing else.
const goClone = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_SYSVSEM | unix.CLONE_THREAD

const kvmRun = 0xae80 // KVM_RUN

// Running is what the process may do from just before the first guest instruction until its end. There is no open,
// socket, connect, execve, ptrace or mprotect, and no memory is ever executable.
func Running() seccomp.Policy {
	var p seccomp.Policy
	for _, group := range []seccomp.Policy{scheduling, memory, overReserved, poller, signals, threads, enterGuest, saveMachine, logWrites, blockDevice, sockets, control} {
		p = append(p, group...)
	}
	return p
}

// VCPU is what the thread of a vCPU may do: run the guest, answer its register accesses, and be a thread of Go's.
func VCPU() seccomp.Policy {
	var p seccomp.Policy
	for _, group := range []seccomp.Policy{scheduling, memory, overReserved, signals, enterGuest, vcpuThread} {
		p = append(p, group...)
	}
	return p
}

// What any Go 1.26 program does by itself after its start, in the parts that every thread needs and those that only
// some do.
var (
	scheduling = seccomp.Policy{
		{Call: "futex", Why: "every lock and park of the runtime"},
		{Call: "nanosleep", Why: "the runtime's monitor thread and spinning"},
		{Call: "clock_gettime", Why: "the runtime's clock, where the host's clock source has no fast path"},
		{Call: "sched_yield", Errno: uint16(unix.ENOSYS), Why: "the runtime yields between spinning and sleeping on a lock, and does not look whether it could"},
		{Call: "restart_syscall", Why: "the kernel resumes a sleep that a freeze of the cgroup interrupted"},
		{Call: "exit_group", Why: "the process ends"},
	}
	memory = seccomp.Policy{
		{Call: "mmap", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC), seccomp.Lacks(3, replaces)}, Why: "the heap grows; guest memory is mapped before the filter"},
		{Call: "madvise", Why: "the scavenger gives memory back; the balloon gives guest memory back"},
		{Call: "munmap", Errno: uint16(unix.EPERM), Why: "the runtime gives back the ends of an aligned reservation, and does not look whether it could"},
	}
	signals = seccomp.Policy{
		{Call: "rt_sigprocmask", Why: "thread start and signal delivery"},
		{Call: "rt_sigreturn", Why: "return from a signal handler"},
		{Call: "getpid", Why: "preemption and vCPU kicks name the process"},
		{Call: "tgkill", Why: "preemption and vCPU kicks by SIGURG"},
	}
	poller = seccomp.Policy{
		{Call: "epoll_pwait", Why: "the network poller, which waits for kicks and sockets"},
		{Call: "epoll_ctl", Why: "a descriptor that joins or leaves the poller"},
	}
	threads = seccomp.Policy{
		{Call: "clone", Args: []seccomp.Arg{seccomp.Masked(0, ^uint64(unix.CLONE_SETTLS), goClone)}, Why: "a new thread of the runtime, never a process"},
		{Call: "gettid", Why: "thread start"},
		{Call: "sigaltstack", Why: "thread start and end"},
		{Call: "seccomp", Args: []seccomp.Arg{seccomp.Equal(0, unix.SECCOMP_SET_MODE_FILTER), seccomp.Equal(1, 0)},
			Why: "each vCPU's thread narrows itself; a filter can only take away"},
	}
)

// LogTable is where spore-vmm has its kvm.LogSwitch: below the program, and so below all that the process may map memory over once a
// guest runs. So what the table says cannot be changed: slots of the guest's memory with and without a dirty log. What is there can
// be thrown away (madvise), and says then that the first slot is to go, which is the guest's end.
const LogTable = 0x10_0000

// replaces is what a mapping has that may be over another.
const replaces = unix.MAP_FIXED

// firstHeap is below all that the Go runtime reserves and then maps over: its heap is at a random multiple of 64 MiB, and the rest high up.
// The program and LogTable are below it. A mapping grows upwards, and cannot come round to them.
const firstHeap = 64 << 20

// overReserved lets the runtime map memory where it has reserved it.
var overReserved = seccomp.Policy{
	{Call: "mmap", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC), seccomp.AtLeast(0, firstHeap)}, Why: "the heap, over what was reserved for it, and never over LogTable"},
}

// logWrites lets a live snapshot have a dirty log of what the guest writes meanwhile. The four entries of a kvm.LogSwitch are 32
// bytes each, and a table does not cross a page.
var logWrites = seccomp.Policy{
	{Call: "ioctl", Args: []seccomp.Arg{seccomp.Equal(1, 0x4020ae46), seccomp.Masked(2, ^uint64(0x60), LogTable)}, Why: "KVM_SET_USER_MEMORY_REGION, with one of the entries of LogTable"},
}

var enterGuest = seccomp.Policy{
	{Call: "ioctl", Args: []seccomp.Arg{seccomp.Equal(1, kvmRun)}, Why: "enter the guest"},
}

// saveMachine is what a snapshot reads of the VM (linux/kvm.h). Nothing of it changes the machine but the log, which it
// empties; all that sets state is over by now, and the vCPUs' own threads may do none of it.
var saveMachine = ioctls(
	ioctl{0x4010ae42, "KVM_GET_DIRTY_LOG"},
	ioctl{0xc208ae62, "KVM_GET_IRQCHIP"},
	ioctl{0x8030ae7c, "KVM_GET_CLOCK"},
	ioctl{0x8004ae98, "KVM_GET_MP_STATE"},
	ioctl{0x8090ae81, "KVM_GET_REGS"},
	ioctl{0x9000aea4, "KVM_GET_XSAVE"},
	ioctl{0x8188aea6, "KVM_GET_XCRS"},
	ioctl{0x8138ae83, "KVM_GET_SREGS"},
	ioctl{0x8140aecc, "KVM_GET_SREGS2"},
	ioctl{0xc008ae88, "KVM_GET_MSRS"},
	ioctl{0x8400ae8e, "KVM_GET_LAPIC"},
	ioctl{0x8080aea1, "KVM_GET_DEBUGREGS"},
	ioctl{0x8040ae9f, "KVM_GET_VCPU_EVENTS"},
)

// ioctl is one request, by its number in linux/kvm.h, and what it is for.
type ioctl struct {
	number uint64
	why    string
}

func ioctls(list ...ioctl) seccomp.Policy {
	var p seccomp.Policy
	for _, c := range list {
		p = append(p, seccomp.Rule{Call: "ioctl", Args: []seccomp.Arg{seccomp.Equal(1, c.number)}, Why: c.why})
	}
	return p
}

var vcpuThread = seccomp.Policy{
	{Call: "epoll_pwait", Why: "the runtime looks at the poller when it starts the world after a collection"},
	{Call: "read", Why: "it empties the poller's own event counter then"},
	{Call: "write", Why: "kicks, interrupts, the poller's wake-up, log and serial output"},
}

var blockDevice = seccomp.Policy{
	{Call: "preadv2", Why: "virtio-blk reads, some of which must not wait; vsock: host bytes go straight into guest buffers"},
	{Call: "pwritev2", Why: "virtio-blk writes; vsock: guest bytes go straight to the host's socket"},
	{Call: "fdatasync", Why: "virtio-blk flush"},
	{Call: "fallocate", Why: "virtio-blk discard and write-zeroes"},
}

var sockets = seccomp.Policy{
	{Call: "recvmsg", Why: "the broker hands over connected sockets"},
	{Call: "shutdown", Why: "vsock: a half-closed connection"},
	{Call: "fcntl", Args: []seccomp.Arg{seccomp.Equal(1, unix.F_GETFL)}, Why: "is a descriptor that was handed over non-blocking"},
	{Call: "close", Why: "a connection ends"},
}

var control = seccomp.Policy{
	{Call: "read", Why: "control requests, event counters, host sockets, entropy"},
	{Call: "write", Why: "control replies, event counters, console and log"},
}
