package jailer

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// step is one part of entering the jail. The order is the point; why says what the step takes away.
type step struct {
	name string
	why  string
	do   func(files int) error
}

// steps, in order. Mounts come before capabilities go; no_new_privs and the filter come last.
var steps = []step{
	{"close", "a descriptor that leaked from the supervisor may lead out of the jail (CVE-2024-21626)", closeOthers},
	{"mounts", "nothing mounted here may show up outside, or the other way round", privateMounts},
	{"root", "an empty, read-only root: no path leads to a host file, not even to our own binary", emptyRoot},
	{"rlimits", "bounds on what a taken-over process can use up", limits},
	{"capabilities", "all five sets empty and locked: root inside the user namespace is nobody here too", dropCapabilities},
	{"privileges", "no program run later can gain what was dropped", noNewPrivileges},
	{"dumpable", "no core file and no ptrace by a process of the same uid", notDumpable},
}

// Enter is the child's half. It is called before any other goroutine starts, in a process made by Start,
// with the number of files it was given. After it the process has an empty root, no capability and no
// descriptor beyond its own. An error names the step; the process must then exit.
func Enter(files int) error {
	if files < 0 || files > MaxFiles {
		return fmt.Errorf("enter jail: %w: %d files", ErrConfig, files)
	}
	for _, s := range steps {
		if err := s.do(files); err != nil {
			return fmt.Errorf("enter jail: %s: %w", s.name, err)
		}
	}
	return nil
}

func closeOthers(files int) error {
	// The Go runtime may hold its own epoll and event descriptors by now; marking instead of closing them
	// keeps it alive. Those of the supervisor were close-on-exec or are closed here.
	first := FirstFile + files
	for fd := first; fd < first+64; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	if err := unix.CloseRange(uint(first), ^uint(0)>>1&0xffffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	return nil
}

func privateMounts(int) error {
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// mountPoint is where the new root is mounted for the moment before it becomes /. Any directory that every
// Linux has will do; it is only covered in this namespace.
const mountPoint = "/proc"

func emptyRoot(int) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("spore", mountPoint, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555"); err != nil {
		return &os.PathError{Op: "mount tmpfs on", Path: mountPoint, Err: err}
	}
	if err := unix.Chdir(mountPoint); err != nil {
		return &os.PathError{Op: "chdir", Path: mountPoint, Err: err}
	}
	// pivot_root(".", ".") stacks the old root on the new one, where it can be detached without a directory
	// to hold it. See pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount2", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return &os.PathError{Op: "chdir", Path: "/", Err: err}
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""))
}

// rlimits of the jailed process. RLIMIT_AS is absent: the Go runtime reserves more than a gigabyte of
// addresses, and guest memory is bounded by the configuration.
var rlimits = []struct {
	resource int
	value    uint64
	why      string
}{
	{unix.RLIMIT_CORE, 0, "guest memory never reaches the host's disk"},
	{unix.RLIMIT_NOFILE, 1024, "one descriptor per vsock connection and event, and no more"},
	{unix.RLIMIT_MSGQUEUE, 0, "no POSIX message queue is used"},
}

func limits(int) error {
	for _, l := range rlimits {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("resource %d: %w", l.resource, os.NewSyscallError("setrlimit", err))
		}
	}
	return nil
}

// allThreads makes a system call on every thread of the process: capabilities and prctl settings belong to
// a thread, and the runtime has started several before main.
func allThreads(name string, trap, a1, a2, a3, a4, a5 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, a4, a5, 0); errno != 0 {
		return os.NewSyscallError(name, errno)
	}
	return nil
}

func prctl(option, arg2, arg3 uintptr) error {
	return allThreads("prctl", unix.SYS_PRCTL, option, arg2, arg3, 0, 0)
}

// securebits: no capability comes back by being or becoming uid 0, and that cannot be undone.
// SECBIT_NOROOT, _NO_SETUID_FIXUP, _NO_CAP_AMBIENT_RAISE and their locks (linux/securebits.h).
const securebits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<6 | 1<<7

func dropCapabilities(int) error {
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if _, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0); errno == unix.EINVAL {
			break // a kernel with fewer capabilities than this build knows
		}
		if err := prctl(unix.PR_CAPBSET_DROP, c, 0); err != nil {
			return fmt.Errorf("bounding set, capability %d: %w", c, err)
		}
	}
	if err := prctl(unix.PR_SET_SECUREBITS, securebits, 0); err != nil {
		return fmt.Errorf("securebits: %w", err)
	}
	return clearCapabilities()
}

func noNewPrivileges(int) error { return prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0) }

func notDumpable(int) error { return prctl(unix.PR_SET_DUMPABLE, 0, 0) }
