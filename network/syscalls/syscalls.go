// Package syscalls is the system-call policy of spore-net: which calls the process may make at each stage of its life, each with its
// reason. The compiled programs beside it are made from the tables by "go generate ./network/syscalls"; a test holds them against the
// tables for every system call number.
//
// The stages stack: the process is born with starting, and all its threads get serving before the guest's first frame is read.
package syscalls

import (
	_ "embed" // the compiled programs

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
)

//go:generate go run ./compile

// The compiled stages, arrays of struct sock_filter.
var (
	//go:embed starting_amd64.bpf
	StartingProgram []byte
	//go:embed serving_amd64.bpf
	ServingProgram []byte
)

// Stage is a policy with its name and its compiled form.
type Stage struct {
	Name    string
	Policy  seccomp.Policy
	Program []byte
}

// Stages returns all, in the order in which they are put on.
func Stages() []Stage {
	return []Stage{{"starting", Starting(), StartingProgram}, {"serving", Serving(), ServingProgram}}
}

// execFile is the descriptor that the jail runs the program from (jailer.ExecFile).
const execFile = 1000

// goClone are the only clone flags the Go runtime uses: a thread of this process, nothing else.
const goClone = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// Starting is what the process may do from its first instruction until Serving. It stays on, so it has what Serving has.
func Starting() seccomp.Policy {
	p := seccomp.Policy{
		{Call: "execveat", Args: []seccomp.Arg{seccomp.Equal(0, execFile), seccomp.Equal(4, unix.AT_EMPTY_PATH)}, Why: "the jail's last step; the descriptor closes with it"},
		{Call: "arch_prctl", Why: "thread-local storage of the first thread"},
		{Call: "sched_getaffinity", Why: "how many processors there are"},
		{Call: "openat", Errno: uint16(unix.ENOENT), Why: "the runtime looks for the size of huge pages; there is no file"},
		{Call: "rt_sigaction", Why: "handlers of the runtime"},
		{Call: "prlimit64", Why: "package os raises the soft limit of descriptors"},
		{Call: "prctl", Why: "a look at the jail; not dumpable; no new privileges"},
		{Call: "capget", Why: "a look at the jail"},
		{Call: "faccessat", Why: "a look at the jail"},
		{Call: "seccomp", Args: []seccomp.Arg{seccomp.Equal(0, unix.SECCOMP_SET_MODE_FILTER)}, Why: "the next stage"},
		{Call: "recvmsg", Why: "the configuration and its descriptors"},
		{Call: "fstat", Why: "how large the audit file is"},
		{Call: "eventfd2", Why: "the poller's wake-up"},
		{Call: "epoll_create1", Why: "the poller"},
		{Call: "fcntl", Why: "what was handed over: close-on-exec, non-blocking, and a duplicate of published sockets for package net"},
	}
	have := map[string]bool{}
	for _, call := range p.Calls() {
		have[call] = true
	}
	for _, r := range Serving() {
		if !have[r.Call] {
			p = append(p, r)
		}
	}
	return p
}

// Serving is what the process may do while it serves a guest. There is no open, exec, ptrace or ioctl, no memory is ever executable, and
// sockets are of IPv4 and IPv6 only: TCP, UDP and echo requests, never raw ones, none of the kernel's own families, none of this host's.
func Serving() seccomp.Policy {
	var p seccomp.Policy
	for _, group := range []seccomp.Policy{scheduling, memory, signals, threads, poller, descriptors, sockets, options} {
		p = append(p, group...)
	}
	return p
}

var (
	scheduling = seccomp.Policy{
		{Call: "futex", Why: "every lock and park of the runtime"},
		{Call: "nanosleep", Why: "the runtime's monitor thread and spinning"},
		{Call: "clock_gettime", Why: "the runtime's clock, where the host's clock source has no fast path"},
		{Call: "sched_yield", Why: "spinning on a runtime lock"},
		{Call: "restart_syscall", Why: "the kernel resumes a sleep that a freeze of the cgroup interrupted"},
		{Call: "exit_group", Why: "the process ends"},
		{Call: "exit", Why: "a thread ends"},
	}
	memory = seccomp.Policy{
		{Call: "mmap", Args: []seccomp.Arg{seccomp.Lacks(2, unix.PROT_EXEC)}, Why: "the heap grows"},
		{Call: "munmap", Why: "the ends of an aligned reservation"},
		{Call: "madvise", Why: "the scavenger gives memory back"},
	}
	signals = seccomp.Policy{
		{Call: "rt_sigprocmask", Why: "thread start and signal delivery"},
		{Call: "rt_sigreturn", Why: "return from a signal handler"},
		{Call: "sigaltstack", Why: "thread start and end"},
		{Call: "getpid", Why: "preemption names the process"},
		{Call: "tgkill", Why: "preemption by SIGURG"},
	}
	threads = seccomp.Policy{
		{Call: "clone", Args: []seccomp.Arg{seccomp.Masked(0, ^uint64(unix.CLONE_SETTLS), goClone)}, Why: "a new thread of the runtime, never a process"},
		{Call: "gettid", Why: "thread start"},
		{Call: "getrandom", Why: "initial sequence numbers, keys and nonces of TLS, identifiers of queries"},
	}
	poller = seccomp.Policy{
		{Call: "epoll_pwait", Why: "the network poller"},
		{Call: "epoll_ctl", Why: "a socket that joins or leaves the poller"},
	}
	descriptors = seccomp.Policy{
		{Call: "read", Why: "sockets, control requests, the poller's wake-up"},
		{Call: "readv", Why: "frames of the guest's"},
		{Call: "write", Why: "sockets, control replies, audit and log lines"},
		{Call: "writev", Why: "frames for the guest; what package net writes in pieces"},
		{Call: "close", Why: "a connection ends"},
		{Call: "fcntl", Args: []seccomp.Arg{seccomp.Equal(1, unix.F_GETFL)}, Why: "package os asks whether a ping socket blocks"},
	}
)

// flags are what package net adds to the type of a socket.
const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC

// socket is a rule for one kind.
func socket(family, kind, protocol uint64, why string) seccomp.Rule {
	return seccomp.Rule{Call: "socket", Args: []seccomp.Arg{seccomp.Equal(0, family), seccomp.Equal(1, kind|flags), seccomp.Equal(2, protocol)}, Why: why}
}

var sockets = seccomp.Policy{
	socket(unix.AF_INET, unix.SOCK_STREAM, 0, "TCP to destinations and name servers"),
	socket(unix.AF_INET6, unix.SOCK_STREAM, 0, "the same over IPv6"),
	socket(unix.AF_INET, unix.SOCK_DGRAM, 0, "UDP to destinations and name servers"),
	socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, "the same over IPv6"),
	socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, "echo requests"),
	socket(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, "echo requests over IPv6"),
	{Call: "connect", Why: "to where the policy lets the guest go; the network namespace decides what is there"},
	{Call: "accept4", Why: "published ports, whose sockets the supervisor has bound"},
	{Call: "getsockname", Why: "package net asks for every connection"},
	{Call: "getpeername", Why: "package net asks for every connection"},
	{Call: "recvfrom", Why: "datagrams, published ones with their sender"},
	{Call: "sendto", Why: "answers to the sender of a published port's datagram"},
	{Call: "shutdown", Why: "one side of a connection has said all"},
}

// option is a rule for one socket option.
func option(call string, level, name uint64, why string) seccomp.Rule {
	return seccomp.Rule{Call: call, Args: []seccomp.Arg{seccomp.Equal(1, level), seccomp.Equal(2, name)}, Why: why}
}

var options = seccomp.Policy{
	option("getsockopt", unix.SOL_SOCKET, unix.SO_ERROR, "what came of a connect"),
	option("getsockopt", unix.SOL_SOCKET, unix.SO_TYPE, "what kind of socket a published port is"),
	option("setsockopt", unix.SOL_SOCKET, unix.SO_BROADCAST, "package net, for every UDP socket"),
	option("setsockopt", unix.SOL_SOCKET, unix.SO_KEEPALIVE, "a destination that is gone"),
	option("setsockopt", unix.SOL_SOCKET, unix.SO_LINGER, "a reset is passed on as a reset"),
	option("setsockopt", unix.IPPROTO_TCP, unix.TCP_NODELAY, "the guest decides what goes out together"),
	option("setsockopt", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, "a destination that is gone"),
	option("setsockopt", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, "a destination that is gone"),
	option("setsockopt", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, "a destination that is gone"),
	option("setsockopt", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, "package net, for every IPv6 socket"),
}
