package syscalls_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"spore/jailer/seccomp"
	"spore/jailer/seccomp/seccomptest"
	"spore/network/syscalls"
	"spore/vmm/policy"
)

// TestStages holds both stages to what they must be: valid, with reasons, and the second no wider than the first.
func TestStages(t *testing.T) {
	for _, s := range syscalls.Stages() {
		if err := s.Policy.Validate(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	for _, r := range syscalls.Serving() {
		var args [6]uint64
		for _, a := range r.Args {
			args[a.Index] = a.Value
		}
		if r.Errno == 0 && syscalls.Starting().Decide(r.Call, args) != seccomp.Allow {
			t.Errorf("the serving stage allows %s %#x, the starting stage below it does not", r.Call, args)
		}
	}
	if n := len(syscalls.Serving().Allowed()); n > 40 {
		t.Errorf("%d calls in the serving stage, at most 40", n)
	}
}

func TestProgramIsTheTable(t *testing.T) {
	for _, s := range syscalls.Stages() {
		t.Run(s.Name, func(t *testing.T) { seccomptest.Compare(t, s.Program, s.Policy, policy.CallNames) })
	}
}

// TestForbidden names what must never be in the serving stage, whatever the table says one day.
func TestForbidden(t *testing.T) {
	vm := seccomptest.Program(t, syscalls.ServingProgram)
	const kernelFlags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	for name, c := range map[string]struct {
		nr   uint32
		args [6]uint64
	}{
		"open": {unix.SYS_OPEN, [6]uint64{}}, "openat": {unix.SYS_OPENAT, [6]uint64{}}, "openat2": {unix.SYS_OPENAT2, [6]uint64{}},
		"execve": {unix.SYS_EXECVE, [6]uint64{}}, "execveat": {unix.SYS_EXECVEAT, [6]uint64{0: 1000, 4: unix.AT_EMPTY_PATH}},
		"fork": {unix.SYS_FORK, [6]uint64{}}, "vfork": {unix.SYS_VFORK, [6]uint64{}}, "clone3": {unix.SYS_CLONE3, [6]uint64{}},
		"clone as fork": {unix.SYS_CLONE, [6]uint64{uint64(unix.SIGCHLD)}}, "ptrace": {unix.SYS_PTRACE, [6]uint64{}},
		"ioctl": {unix.SYS_IOCTL, [6]uint64{}}, "bind": {unix.SYS_BIND, [6]uint64{}}, "listen": {unix.SYS_LISTEN, [6]uint64{}},
		"recvmsg": {unix.SYS_RECVMSG, [6]uint64{}}, "sendmsg": {unix.SYS_SENDMSG, [6]uint64{}}, "setns": {unix.SYS_SETNS, [6]uint64{}},
		"unshare": {unix.SYS_UNSHARE, [6]uint64{}}, "mount": {unix.SYS_MOUNT, [6]uint64{}}, "bpf": {unix.SYS_BPF, [6]uint64{}},
		"io_uring_setup": {unix.SYS_IO_URING_SETUP, [6]uint64{}}, "memfd_create": {unix.SYS_MEMFD_CREATE, [6]uint64{}},
		"executable mmap": {unix.SYS_MMAP, [6]uint64{2: unix.PROT_READ | unix.PROT_EXEC}},
		"mprotect":        {unix.SYS_MPROTECT, [6]uint64{}},
		"unix socket":     {unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM | kernelFlags}},
		"netlink socket":  {unix.SYS_SOCKET, [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW | kernelFlags}},
		"packet socket":   {unix.SYS_SOCKET, [6]uint64{unix.AF_PACKET, unix.SOCK_RAW | kernelFlags}},
		"vsock socket":    {unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM | kernelFlags}},
		"alg socket":      {unix.SYS_SOCKET, [6]uint64{unix.AF_ALG, unix.SOCK_SEQPACKET | kernelFlags}},
		"raw socket":      {unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_RAW | kernelFlags, unix.IPPROTO_ICMP}},
		"SCTP socket":     {unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM | kernelFlags, unix.IPPROTO_SCTP}},
		"MPTCP socket":    {unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM | kernelFlags, unix.IPPROTO_MPTCP}},
		"socket mark":     {unix.SYS_SETSOCKOPT, [6]uint64{1: unix.SOL_SOCKET, 2: unix.SO_MARK}},
		"bind to device":  {unix.SYS_SETSOCKOPT, [6]uint64{1: unix.SOL_SOCKET, 2: unix.SO_BINDTODEVICE}},
		"IP options":      {unix.SYS_SETSOCKOPT, [6]uint64{1: unix.IPPROTO_IP, 2: unix.IP_OPTIONS}},
		"attach filter":   {unix.SYS_SETSOCKOPT, [6]uint64{1: unix.SOL_SOCKET, 2: unix.SO_ATTACH_FILTER}},
	} {
		if got := uint32(seccomptest.Decide(t, vm, c.nr, seccomptest.ArchX8664, c.args)); got != uint32(seccomp.Kill) {
			t.Errorf("%s: filter says %#x", name, got)
		}
	}
}
