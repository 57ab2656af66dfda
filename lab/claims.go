package lab

import "spore/lab/probe"

// Checks is what the jail claims about attempts by name, without observations.
func Checks() []Check {
	var all []Check
	for _, c := range claims {
		for _, s := range []struct{ stage, want string }{{probe.Bare, c.bare}, {probe.Build, c.building}, {probe.Running, c.running}, {probe.VCPU, c.running}} {
			if s.want != "" {
				all = append(all, Check{Claim: c.claim, Stage: s.stage, Action: c.action, Expected: s.want})
			}
		}
	}
	return all
}

// claims by stage. Bare is what the layers below the filters do to the attempt by themselves: an attacker who found a
// hole in the filters stands before them. Empty is not tried: the filters alone stop it.
var claims = []struct{ claim, action, bare, building, running string }{
	{"no host file can be read", "open /etc/passwd", "ENOENT", "ENOENT", Killed},
	{"its own binary is out of reach (CVE-2019-5736)", "open /proc/self/exe", "ENOENT", "ENOENT", Killed},
	{"no other VM can be made", "open /dev/kvm", "ENOENT", "ENOENT", Killed},
	{"the root cannot be listed", "list /", "EACCES", "ENOENT", Killed},
	{"nothing can be created", "create /x", "EROFS", "ENOENT", Killed},
	{"no way to have the kernel run a program (CVE-2022-0492)", "open core_pattern", "ENOENT", "ENOENT", Killed},
	{"no TCP", "connect to TCP", "EACCES or ENETUNREACH", Killed, Killed},
	{"no abstract socket (CVE-2020-15257)", "connect to a unix name", "ECONNREFUSED", Killed, Killed},
	{"no netlink", "socket AF_NETLINK", "", Killed, Killed},
	{"no raw packets", "socket AF_PACKET", "EPERM", Killed, Killed},
	{"no mount", "mount", "EPERM", Killed, Killed},
	{"no namespace of its own making", "unshare", "EPERM", Killed, Killed},
	{"no other identity", "setuid", "EINVAL", Killed, Killed},
	{"no other root", "chroot", "EPERM", Killed, Killed},
	{"no debugging", "ptrace", "EPERM", Killed, Killed},
	{"no program", "execve", "ENOENT", Killed, Killed},
	{"no process", "fork", "", Killed, Killed},
	{"no memory that is writable and executable", "map memory rwx", "", Killed, Killed},
	{"no memory becomes executable", "make memory executable", "", Killed, Killed},
	{"no process outside to signal", "signal a process", "ESRCH", "ESRCH", "ESRCH"},
	{"no process at all to signal", "signal every process", "ESRCH", Killed, Killed},
	{"no io_uring", "io_uring", "", Killed, Killed},
	{"no BPF", "bpf", "", Killed, Killed},
	{"no anonymous file", "memfd", "", Killed, Killed},
	{"no VM", "ioctl KVM_CREATE_VM", "", "", Killed},
	{"no other guest memory", "ioctl KVM_SET_MEMORY", "", "", Killed},
	{"no input pushed into a terminal", "ioctl TIOCSTI", "", Killed, Killed},
	{"a tap carries frames and nothing else (NET-08)", "ioctl TUNSETIFF", "", Killed, Killed},
	{"no offloads but those that were set", "ioctl TUNSETOFFLOAD", "", Killed, Killed},
	{"no interface to take up or down", "ioctl SIOCSIFFLAGS", "", Killed, Killed},
	{"no_new_privs is for good", "remove no_new_privs", "EINVAL", "EINVAL", Killed},
	{"not dumpable: no core file, no debugger of the same identity", "be dumpable", "EACCES", "EACCES", ""},
	{"no return to being dumpable", "become dumpable", "", "", Killed},
	{"no more descriptors", "raise descriptor limit", "EPERM", "EPERM", Killed},
	{"no way round by the x32 calls", "fall back to x32", "", Killed, Killed},
	{"nothing but the listed prctl", "replace a thread's name", "", "", Killed},
}
