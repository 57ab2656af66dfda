package policy_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
	"spore/jailer/seccomp/seccomptest"
	"spore/vmm/policy"
)

const kill = uint32(seccomp.Kill)

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
		t.Run(s.Name, func(t *testing.T) { seccomptest.Compare(t, s.Program, s.Policy, policy.CallNames) })
	}
}

// TestForbidden names what must never be in the running stage, whatever the table says one day.
func TestForbidden(t *testing.T) {
	vm := seccomptest.Program(t, policy.RunningProgram)
	for name, nr := range map[string]uint32{
		"open": unix.SYS_OPEN, "openat": unix.SYS_OPENAT, "openat2": unix.SYS_OPENAT2, "socket": unix.SYS_SOCKET,
		"connect": unix.SYS_CONNECT, "execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "ptrace": unix.SYS_PTRACE,
		"fork": unix.SYS_FORK, "vfork": unix.SYS_VFORK, "clone3": unix.SYS_CLONE3, "io_uring_setup": unix.SYS_IO_URING_SETUP,
		"mount": unix.SYS_MOUNT, "unshare": unix.SYS_UNSHARE, "setns": unix.SYS_SETNS, "bpf": unix.SYS_BPF,
		"process_vm_writev": unix.SYS_PROCESS_VM_WRITEV, "memfd_create": unix.SYS_MEMFD_CREATE, "userfaultfd": unix.SYS_USERFAULTFD,
	} {
		if got := uint32(seccomptest.Decide(t, vm, nr, seccomptest.ArchX8664, [6]uint64{})); got != kill {
			t.Errorf("%s: filter says %#x", name, got)
		}
	}
	if got := uint32(seccomptest.Decide(t, vm, unix.SYS_MMAP, seccomptest.ArchX8664, [6]uint64{2: unix.PROT_READ | unix.PROT_EXEC})); got != kill {
		t.Errorf("executable mmap: filter says %#x", got)
	}
	if got := uint32(seccomptest.Decide(t, vm, unix.SYS_IOCTL, seccomptest.ArchX8664, [6]uint64{1: 0xae01})); got != kill {
		t.Errorf("KVM_CREATE_VM: filter says %#x", got)
	}
	if got := uint32(seccomptest.Decide(t, vm, unix.SYS_CLONE, seccomptest.ArchX8664, [6]uint64{uint64(unix.SIGCHLD)})); got != kill {
		t.Errorf("clone as fork: filter says %#x", got)
	}
}

// TestLogTable tries what would give a guest other memory than it has: slots from elsewhere, and another table in the place of that one.
func TestLogTable(t *testing.T) {
	const setMemory, anonymous = 0x4020ae46, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	running, vcpu := seccomptest.Program(t, policy.RunningProgram), seccomptest.Program(t, policy.VCPUProgram)
	for _, test := range []struct {
		name    string
		call    uint32
		args    [6]uint64
		allowed bool
	}{
		{"the first entry", unix.SYS_IOCTL, [6]uint64{3, setMemory, policy.LogTable}, true},
		{"the last entry", unix.SYS_IOCTL, [6]uint64{3, setMemory, policy.LogTable + 96}, true},
		{"after the last", unix.SYS_IOCTL, [6]uint64{3, setMemory, policy.LogTable + 128}, false},
		{"between two", unix.SYS_IOCTL, [6]uint64{3, setMemory, policy.LogTable + 8}, false},
		{"nothing", unix.SYS_IOCTL, [6]uint64{3, setMemory}, false},
		{"on the heap", unix.SYS_IOCTL, [6]uint64{3, setMemory, 0xc000000000 | policy.LogTable}, false},
		{"memory anywhere", unix.SYS_MMAP, [6]uint64{0, 1 << 20, unix.PROT_READ | unix.PROT_WRITE, anonymous}, true},
		{"memory over the heap", unix.SYS_MMAP, [6]uint64{0xc000000000, 1 << 26, unix.PROT_READ | unix.PROT_WRITE, anonymous | unix.MAP_FIXED}, true},
		{"memory over a lower heap", unix.SYS_MMAP, [6]uint64{1 << 26, 1 << 26, unix.PROT_READ | unix.PROT_WRITE, anonymous | unix.MAP_FIXED}, true},
		{"memory over the table", unix.SYS_MMAP, [6]uint64{policy.LogTable, 1 << 12, unix.PROT_READ | unix.PROT_WRITE, anonymous | unix.MAP_FIXED}, false},
		{"memory up to a lower heap", unix.SYS_MMAP, [6]uint64{1<<26 - 1<<12, 1 << 12, unix.PROT_READ | unix.PROT_WRITE, anonymous | unix.MAP_FIXED}, false},
		{"a program over the heap", unix.SYS_MMAP, [6]uint64{0xc000000000, 1 << 26, unix.PROT_READ | unix.PROT_EXEC, anonymous | unix.MAP_FIXED}, false},
		{"memory from before it on", unix.SYS_MMAP, [6]uint64{1 << 16, 1 << 30, unix.PROT_READ | unix.PROT_WRITE, anonymous | unix.MAP_FIXED}, false},
		{"a file over it", unix.SYS_MMAP, [6]uint64{policy.LogTable, 1 << 12, unix.PROT_READ, unix.MAP_SHARED | unix.MAP_FIXED, 3}, false},
		{"to write to it", unix.SYS_MPROTECT, [6]uint64{policy.LogTable, 1 << 12, unix.PROT_READ | unix.PROT_WRITE}, false},
		{"to move it", unix.SYS_MREMAP, [6]uint64{policy.LogTable, 1 << 12, 1 << 12, 3, 1 << 30}, false},
	} {
		if got := uint32(seccomptest.Decide(t, running, test.call, seccomptest.ArchX8664, test.args)); (got != kill) != test.allowed {
			t.Errorf("%s: filter says %#x", test.name, got)
		}
		if got := uint32(seccomptest.Decide(t, vcpu, test.call, seccomptest.ArchX8664, test.args)); test.call == unix.SYS_IOCTL && got != kill {
			t.Errorf("%s: a vCPU's filter says %#x", test.name, got)
		}
	}
}

// TestNET08_TapControl tries what a tap's descriptor would let its holder do beside reading and writing frames: to become another
// interface's, to change its header, to filter, and to configure interfaces at all.
func TestNET08_TapControl(t *testing.T) {
	for _, s := range policy.Stages() {
		vm := seccomptest.Program(t, s.Program)
		for name, request := range map[string]uint64{
			"TUNSETIFF": unix.TUNSETIFF, "TUNSETQUEUE": unix.TUNSETQUEUE, "TUNSETOWNER": unix.TUNSETOWNER, "TUNSETPERSIST": unix.TUNSETPERSIST,
			"TUNSETOFFLOAD": unix.TUNSETOFFLOAD, "TUNSETVNETHDRSZ": unix.TUNSETVNETHDRSZ, "TUNSETVNETLE": unix.TUNSETVNETLE, "TUNSETSNDBUF": unix.TUNSETSNDBUF,
			"TUNATTACHFILTER": unix.TUNATTACHFILTER, "TUNSETSTEERINGEBPF": unix.TUNSETSTEERINGEBPF, "TUNGETIFF": unix.TUNGETIFF, "TUNGETDEVNETNS": unix.TUNGETDEVNETNS,
			"SIOCSIFFLAGS": unix.SIOCSIFFLAGS, "SIOCSIFHWADDR": unix.SIOCSIFHWADDR, "SIOCSIFADDR": unix.SIOCSIFADDR, "SIOCGIFCONF": unix.SIOCGIFCONF,
			"SIOCGSKNS": unix.SIOCGSKNS,
		} {
			if got := uint32(seccomptest.Decide(t, vm, unix.SYS_IOCTL, seccomptest.ArchX8664, [6]uint64{7, request})); got != kill {
				t.Errorf("%s stage: %s: filter says %#x", s.Name, name, got)
			}
		}
	}
}
