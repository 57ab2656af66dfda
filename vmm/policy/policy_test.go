package policy_test

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// numbers of the calls in the policy (asm/unistd_64.h). A call that is missing here fails the test.
var numbers = map[string]uint32{
	"read": unix.SYS_READ, "write": unix.SYS_WRITE, "readv": unix.SYS_READV, "writev": unix.SYS_WRITEV,
	"preadv": unix.SYS_PREADV, "preadv2": unix.SYS_PREADV2, "pwritev": unix.SYS_PWRITEV, "pread64": unix.SYS_PREAD64,
	"pwrite64": unix.SYS_PWRITE64, "pwritev2": unix.SYS_PWRITEV2, "sendmsg": unix.SYS_SENDMSG,
	"fdatasync": unix.SYS_FDATASYNC, "fallocate": unix.SYS_FALLOCATE, "recvmsg": unix.SYS_RECVMSG,
	"shutdown": unix.SYS_SHUTDOWN, "fcntl": unix.SYS_FCNTL, "close": unix.SYS_CLOSE, "ioctl": unix.SYS_IOCTL,
	"futex": unix.SYS_FUTEX, "nanosleep": unix.SYS_NANOSLEEP, "sched_yield": unix.SYS_SCHED_YIELD,
	"epoll_pwait": unix.SYS_EPOLL_PWAIT, "epoll_ctl": unix.SYS_EPOLL_CTL, "mmap": unix.SYS_MMAP,
	"munmap": unix.SYS_MUNMAP, "madvise": unix.SYS_MADVISE, "prctl": unix.SYS_PRCTL,
	"rt_sigprocmask": unix.SYS_RT_SIGPROCMASK, "rt_sigreturn": unix.SYS_RT_SIGRETURN,
	"sigaltstack": unix.SYS_SIGALTSTACK, "gettid": unix.SYS_GETTID, "getpid": unix.SYS_GETPID,
	"tgkill": unix.SYS_TGKILL, "clone": unix.SYS_CLONE, "getrandom": unix.SYS_GETRANDOM,
	"restart_syscall": unix.SYS_RESTART_SYSCALL, "exit": unix.SYS_EXIT, "exit_group": unix.SYS_EXIT_GROUP,
	"execveat": unix.SYS_EXECVEAT, "arch_prctl": unix.SYS_ARCH_PRCTL, "sched_getaffinity": unix.SYS_SCHED_GETAFFINITY,
	"openat": unix.SYS_OPENAT, "mprotect": unix.SYS_MPROTECT, "rt_sigaction": unix.SYS_RT_SIGACTION, "prlimit64": unix.SYS_PRLIMIT64,
	"capget": unix.SYS_CAPGET, "clock_gettime": unix.SYS_CLOCK_GETTIME, "faccessat": unix.SYS_FACCESSAT, "seccomp": unix.SYS_SECCOMP, "fstat": unix.SYS_FSTAT,
	"fstatfs": unix.SYS_FSTATFS, "lseek": unix.SYS_LSEEK, "eventfd2": unix.SYS_EVENTFD2, "epoll_create1": unix.SYS_EPOLL_CREATE1,
}

// program loads the embedded filter into an interpreter.
func program(t *testing.T, compiled []byte) *bpf.VM {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(compiled)/8)
	for i := range raw {
		b := compiled[8*i:]
		raw[i] = bpf.RawInstruction{Op: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter does not disassemble")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// decide runs the filter on one struct seccomp_data. The interpreter loads words big-endian, the kernel in
// host order: so each 32-bit word is written big-endian, the low word of a 64-bit value first.
func decide(t *testing.T, vm *bpf.VM, nr, arch uint32, args [6]uint64) int {
	t.Helper()
	words := []uint32{nr, arch, 0, 0}
	for _, a := range args {
		words = append(words, uint32(a), uint32(a>>32))
	}
	var in []byte
	for _, w := range words {
		in = binary.BigEndian.AppendUint32(in, w)
	}
	out, err := vm.Run(in)
	if err != nil {
		t.Fatalf("run filter: %v", err)
	}
	return out
}

const (
	archX8664 = 0xc000003e // AUDIT_ARCH_X86_64
	archI386  = 0x40000003 // AUDIT_ARCH_I386
	kill      = uint32(seccomp.Kill)
	x32Bit    = 0x40000000
)

// TestStages holds every stage to what it must be: valid, with reasons, and no wider than the one before where both
// are on the same thread.
func TestStages(t *testing.T) {
	for _, s := range policy.Stages() {
		if err := s.Policy.Validate(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	for _, r := range policy.Running() {
		var args [6]uint64
		for _, a := range r.Args {
			args[a.Index] = a.Value
		}
		if r.Errno == 0 && policy.Building().Decide(r.Call, args) != seccomp.Allow {
			t.Errorf("the running stage allows %s %#x, the building stage below it does not", r.Call, args)
		}
	}
	running := map[string]bool{}
	for _, call := range policy.Running().Allowed() {
		running[call] = true
	}
	for _, call := range policy.VCPU().Allowed() {
		if !running[call] {
			t.Errorf("the vCPU stage allows %s, the running stage does not", call)
		}
	}
	// Firecracker: 50 and 27.
	if n := len(policy.Running().Allowed()); n > 28 {
		t.Errorf("%d calls in the running stage, at most 28", n)
	}
	if n := len(policy.VCPU().Allowed()); n > 18 {
		t.Errorf("%d calls on vCPU threads, at most 18", n)
	}
}

// TestProgramIsTheTable holds each compiled filter against its table for every call number, with argument values on
// both sides of every condition.
func TestProgramIsTheTable(t *testing.T) {
	for _, s := range policy.Stages() {
		t.Run(s.Name, func(t *testing.T) { compare(t, program(t, s.Program), s.Policy) })
	}
}

func compare(t *testing.T, vm *bpf.VM, table seccomp.Policy) {
	t.Helper()
	names := map[uint32]string{}
	for _, call := range table.Calls() {
		nr, ok := numbers[call]
		if !ok {
			t.Fatalf("no number for %s in this test", call)
		}
		names[nr] = call
	}
	for nr := uint32(0); nr < 600; nr++ {
		for _, args := range samples(table, names[nr]) {
			want := uint32(table.Decide(names[nr], args))
			if got := uint32(decide(t, vm, nr, archX8664, args)); got != want {
				t.Errorf("call %d %s %#x: filter says %#x, table %#x", nr, names[nr], args, got, want)
			}
			if got := uint32(decide(t, vm, nr|x32Bit, archX8664, args)); got != kill {
				t.Errorf("x32 call %d: filter says %#x", nr, got)
			}
			if got := uint32(decide(t, vm, nr, archI386, args)); got != kill {
				t.Errorf("i386 call %d: filter says %#x", nr, got)
			}
		}
	}
}

// samples returns argument lists that meet and miss each condition on the call.
func samples(table seccomp.Policy, call string) [][6]uint64 {
	all := [][6]uint64{{}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}}
	for _, r := range table {
		if r.Call != call {
			continue
		}
		var meets [6]uint64
		for _, a := range r.Args {
			meets[a.Index] = a.Value
		}
		all = append(all, meets)
		for bit := 0; bit < 64; bit++ {
			for i := range meets {
				missed := meets
				missed[i] ^= 1 << bit
				all = append(all, missed)
			}
		}
	}
	return all
}

// TestForbidden names what must never be in the running stage, whatever the table says one day.
func TestForbidden(t *testing.T) {
	vm := program(t, policy.RunningProgram)
	for name, nr := range map[string]uint32{
		"open": unix.SYS_OPEN, "openat": unix.SYS_OPENAT, "openat2": unix.SYS_OPENAT2, "socket": unix.SYS_SOCKET,
		"connect": unix.SYS_CONNECT, "execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "ptrace": unix.SYS_PTRACE,
		"fork": unix.SYS_FORK, "vfork": unix.SYS_VFORK, "clone3": unix.SYS_CLONE3, "io_uring_setup": unix.SYS_IO_URING_SETUP,
		"mount": unix.SYS_MOUNT, "unshare": unix.SYS_UNSHARE, "setns": unix.SYS_SETNS, "bpf": unix.SYS_BPF,
		"process_vm_writev": unix.SYS_PROCESS_VM_WRITEV, "memfd_create": unix.SYS_MEMFD_CREATE, "userfaultfd": unix.SYS_USERFAULTFD,
	} {
		if got := uint32(decide(t, vm, nr, archX8664, [6]uint64{})); got != kill {
			t.Errorf("%s: filter says %#x", name, got)
		}
	}
	if got := uint32(decide(t, vm, unix.SYS_MMAP, archX8664, [6]uint64{2: unix.PROT_READ | unix.PROT_EXEC})); got != kill {
		t.Errorf("executable mmap: filter says %#x", got)
	}
	if got := uint32(decide(t, vm, unix.SYS_IOCTL, archX8664, [6]uint64{1: 0xae01})); got != kill {
		t.Errorf("KVM_CREATE_VM: filter says %#x", got)
	}
	if got := uint32(decide(t, vm, unix.SYS_CLONE, archX8664, [6]uint64{uint64(unix.SIGCHLD)})); got != kill {
		t.Errorf("clone as fork: filter says %#x", got)
	}
}

// TestNET08_TapControl tries what a tap's descriptor would let its holder do beside reading and writing frames: to become another
// interface's, to change its header, to filter, and to configure interfaces at all.
func TestNET08_TapControl(t *testing.T) {
	for _, s := range policy.Stages() {
		vm := program(t, s.Program)
		for name, request := range map[string]uint64{
			"TUNSETIFF": unix.TUNSETIFF, "TUNSETQUEUE": unix.TUNSETQUEUE, "TUNSETOWNER": unix.TUNSETOWNER, "TUNSETPERSIST": unix.TUNSETPERSIST,
			"TUNSETOFFLOAD": unix.TUNSETOFFLOAD, "TUNSETVNETHDRSZ": unix.TUNSETVNETHDRSZ, "TUNSETVNETLE": unix.TUNSETVNETLE, "TUNSETSNDBUF": unix.TUNSETSNDBUF,
			"TUNATTACHFILTER": unix.TUNATTACHFILTER, "TUNSETSTEERINGEBPF": unix.TUNSETSTEERINGEBPF, "TUNGETIFF": unix.TUNGETIFF, "TUNGETDEVNETNS": unix.TUNGETDEVNETNS,
			"SIOCSIFFLAGS": unix.SIOCSIFFLAGS, "SIOCSIFHWADDR": unix.SIOCSIFHWADDR, "SIOCSIFADDR": unix.SIOCSIFADDR, "SIOCGIFCONF": unix.SIOCGIFCONF,
			"SIOCGSKNS": unix.SIOCGSKNS,
		} {
			if got := uint32(decide(t, vm, unix.SYS_IOCTL, archX8664, [6]uint64{7, request})); got != kill {
				t.Errorf("%s stage: %s: filter says %#x", s.Name, name, got)
			}
		}
	}
}
