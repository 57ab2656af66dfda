// Package probe is what "spore lab attest" does from the VMM's own place in the jail: one action per process, each an
// attempt that the jail must defeat. It runs in spore-probe, which is jailed as spore-vmm is.
package probe

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spore/jailer"
	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// Report is the descriptor that a probe writes its observation to.
const Report = jailer.FirstFile

// Stages that a probe can be in.
const (
	Bare    = "bare" // every layer but the system-call filters
	Build   = "building"
	Running = "running"
	VCPU    = "vcpu" // on the thread of a vCPU
)

// CallPrefix makes an action of a system call's number, with all arguments zero: "call:101".
const CallPrefix = "call:"

// actions by name. Each returns what the kernel said.
var actions = map[string]func() error{
	"open /etc/passwd":        open("/etc/passwd", unix.O_RDONLY),
	"open /proc/self/exe":     open("/proc/self/exe", unix.O_WRONLY), // JAIL-05
	"open /dev/kvm":           open("/dev/kvm", unix.O_RDWR),
	"list /":                  open("/", unix.O_RDONLY|unix.O_DIRECTORY),
	"create /x":               open("/x", unix.O_CREAT|unix.O_WRONLY),
	"open core_pattern":       open("/proc/sys/kernel/core_pattern", unix.O_WRONLY), // JAIL-07
	"connect to TCP":          connect(unix.AF_INET, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}}),
	"connect to a unix name":  connect(unix.AF_UNIX, &unix.SockaddrUnix{Name: "@spore-attest"}), // JAIL-08
	"socket AF_NETLINK":       socket(unix.AF_NETLINK, unix.SOCK_RAW),
	"socket AF_PACKET":        socket(unix.AF_PACKET, unix.SOCK_RAW),
	"mount":                   func() error { return unix.Mount("x", "/", "tmpfs", 0, "") },
	"unshare":                 func() error { return unix.Unshare(unix.CLONE_NEWNS) },
	"setuid":                  func() error { return unix.Setresuid(1, 1, 1) },
	"chroot":                  func() error { return unix.Chroot("/") },
	"ptrace":                  func() error { return unix.PtraceAttach(1) },
	"execve":                  func() error { return unix.Exec("/bin/sh", []string{"sh"}, nil) },
	"fork":                    call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
	"map memory rwx":          rwx,
	"make memory executable":  executable,
	"signal a process":        func() error { return unix.Tgkill(2, 2, unix.SIGTERM) },
	"signal every process":    func() error { return unix.Kill(-1, unix.SIGTERM) },
	"io_uring":                call(unix.SYS_IO_URING_SETUP, 1, 0),
	"bpf":                     call(unix.SYS_BPF, 0, 0, 0),
	"memfd":                   call(unix.SYS_MEMFD_CREATE, 0, 0),
	"ioctl KVM_CREATE_VM":     call(unix.SYS_IOCTL, Report, 0xae01, 0),
	"ioctl KVM_SET_MEMORY":    call(unix.SYS_IOCTL, Report, 0x4020ae46, 0),
	"ioctl TIOCSTI":           call(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0),        // into the operator's terminal
	"ioctl TUNSETIFF":         call(unix.SYS_IOCTL, Report, unix.TUNSETIFF, 0), // NET-08
	"ioctl TUNSETOFFLOAD":     call(unix.SYS_IOCTL, Report, unix.TUNSETOFFLOAD, 0),
	"ioctl SIOCSIFFLAGS":      call(unix.SYS_IOCTL, Report, unix.SIOCSIFFLAGS, 0),
	"remove no_new_privs":     func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
	"be dumpable":             dumpable,
	"become dumpable":         func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"raise descriptor limit":  raiseLimit,
	"wait":                    wait,
	"fall back to x32":        call(0x40000000|unix.SYS_GETPID, 0),
	"replace a thread's name": call(unix.SYS_PRCTL, unix.PR_SET_NAME, 0),
}

// Main enters the stage, does the action and reports. It is the whole of spore-probe.
func Main(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: spore-probe STAGE ACTION; spore lab attest starts it")
	}
	if err := jailer.Enter(); err != nil {
		return err
	}
	do := actions[args[1]]
	if number, ok := strings.CutPrefix(args[1], CallPrefix); ok {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return fmt.Errorf("system call %q: %w", number, err)
		}
		do = call(uintptr(n))
	}
	if do == nil {
		return fmt.Errorf("no action %q", args[1])
	}
	if err := enter(args[0]); err != nil {
		return err
	}
	err := do()
	if _, err := unix.Write(Report, []byte(observe(err))); err != unix.EPIPE { // EPIPE: who waited knows already
		return err
	}
	return nil
}

func enter(stage string) error {
	switch stage {
	case Bare, Build:
		return nil
	case Running:
		return seccomp.Install(policy.RunningProgram)
	case VCPU:
		return errors.Join(seccomp.Install(policy.RunningProgram), seccomp.InstallThread(policy.VCPUProgram))
	}
	return fmt.Errorf("no stage %q", stage)
}

// Allowed is the observation of an attempt that nothing stopped.
const Allowed = "allowed"

func observe(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return Allowed
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func open(path string, flags int) func() error {
	return func() error {
		_, err := unix.Open(path, flags, 0o600)
		return err
	}
}

func socket(family, kind int) func() error {
	return func() error {
		_, err := unix.Socket(family, kind, 0)
		return err
	}
}

func connect(family int, to unix.Sockaddr) func() error {
	return func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, to)
	}
}

func call(nr uintptr, args ...uintptr) func() error {
	return func() error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func rwx() error {
	_, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return err
}

func executable() error {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
}

// dumpable refuses as a kernel would that keeps a debugger out.
func dumpable() error {
	if state, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || state == 1 {
		return err
	}
	return unix.EACCES
}

func raiseLimit() error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
}

// wait lets itself be looked at until the other end of the report is closed.
func wait() error {
	if _, err := unix.Write(Report, []byte(Allowed)); err != nil {
		return err
	}
	var b [1]byte
	_, err := unix.Read(Report, b[:])
	return err
}
