// Package policy is the system-call policy of spore-vmm: which calls the process may make once the guest
// runs, each with its reason. The compiled programs beside it are made from the table by
// "go generate ./vmm/policy"; a test holds them against it for every system call number.
package policy

import (
	_ "embed" // the compiled programs

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

//go:generate go run ./compile

// Program is the compiled form of Running, an array of struct sock_filter.
//
//go:embed running_amd64.bpf
var Program []byte

// goClone are the only clone flags the Go runtime uses: a thread of this process, nothing else.
const goClone = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_SYSVSEM | unix.CLONE_THREAD

const kvmRun = 0xae80 // KVM_RUN

// Running is what the process may do from just before the first guest instruction until its end.
// There is no open, socket, connect, execve, ptrace or mprotect, and no memory is ever executable.
func Running() seccomp.Policy {
	var p seccomp.Policy
	for _, group := range []seccomp.Policy{goRuntime, vcpus, blockDevice, sockets, control} {
		p = append(p, group...)
	}
	return p
}

// goRuntime is what any Go 1.26 program does by itself after start-up.
var goRuntime = seccomp.Policy{
	{Call: "futex", Why: "every lock and park of the runtime"},
	{Call: "nanosleep", Why: "the runtime's monitor thread and spinning"},
	{Call: "sched_yield", Why: "spinning on a runtime lock"},
	{Call: "epoll_pwait", Why: "the network poller, which waits for kicks and sockets"},
	{Call: "epoll_ctl", Why: "a descriptor that joins or leaves the poller"},
	{Call: "mmap", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC)}, Why: "the heap grows; guest memory is mapped before the filter"},
	{Call: "munmap", Why: "the heap shrinks; thread stacks go"},
	{Call: "madvise", Why: "the scavenger gives memory back; the balloon gives guest memory back"},
	{Call: "prctl", Args: []seccomp.Arg{seccomp.Equal(0, unix.PR_SET_VMA)}, Why: "the runtime names its mappings"},
	{Call: "rt_sigprocmask", Why: "thread start and signal delivery"},
	{Call: "rt_sigreturn", Why: "return from a signal handler"},
	{Call: "sigaltstack", Why: "thread start and exit"},
	{Call: "gettid", Why: "thread start"},
	{Call: "getpid", Why: "preemption and vCPU kicks name the process"},
	{Call: "tgkill", Why: "preemption and vCPU kicks by SIGURG"},
	{Call: "clone", Args: []seccomp.Arg{seccomp.Masked(0, ^uint64(unix.CLONE_SETTLS), goClone)}, Why: "a new thread of the runtime, never a process"},
	{Call: "getrandom", Why: "hash seeds of new threads and maps; the entropy device"},
	{Call: "restart_syscall", Why: "the kernel resumes an interrupted sleep"},
	{Call: "exit", Why: "a thread locked by its goroutine ends with it"},
	{Call: "exit_group", Why: "the process ends"},
}

var vcpus = seccomp.Policy{
	{Call: "ioctl", Args: []seccomp.Arg{seccomp.Equal(1, kvmRun)}, Why: "enter the guest; every other KVM ioctl is over by now"},
}

var blockDevice = seccomp.Policy{
	{Call: "preadv2", Why: "virtio-blk reads, some of which must not wait"},
	{Call: "pwritev2", Why: "virtio-blk writes"},
	{Call: "fdatasync", Why: "virtio-blk flush"},
	{Call: "fallocate", Why: "virtio-blk discard and write-zeroes"},
}

var sockets = seccomp.Policy{
	{Call: "recvmsg", Why: "the broker hands over connected sockets"},
	{Call: "readv", Why: "vsock: host bytes go straight into guest buffers"},
	{Call: "writev", Why: "vsock: guest bytes go straight to the host's socket"},
	{Call: "shutdown", Why: "vsock: a half-closed connection"},
	{Call: "fcntl", Why: "a descriptor that was handed over becomes non-blocking"},
	{Call: "close", Why: "a connection ends"},
}

var control = seccomp.Policy{
	{Call: "read", Why: "control requests, event counters, host sockets"},
	{Call: "write", Why: "control replies, event counters, console and log"},
}
