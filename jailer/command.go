package jailer

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// exeFloor is above every descriptor that the child is given, so that moving those into place cannot
// overwrite the executable's.
const exeFloor = FirstFile + MaxFiles + 1

// cloneflags are the namespaces the process is born into. There is no moment at which it runs outside them.
const cloneflags = unix.CLONE_NEWUSER | // one mapped id: root inside, nobody outside, until Enter drops that too
	unix.CLONE_NEWNS | // its own mounts, soon just an empty root
	unix.CLONE_NEWPID | // sees and signals only itself; its death kills whatever it could have left
	unix.CLONE_NEWNET | // no interface, not even a loopback that is up
	unix.CLONE_NEWIPC | // no shared memory or queues of others
	unix.CLONE_NEWUTS | // hostname tells nothing
	unix.CLONE_NEWCGROUP // cgroup paths tell nothing

// Command is the parent's half: a command whose process starts in its namespaces with one mapped id and
// exactly the descriptors of cfg. The caller starts it, waits for it, and keeps pidfd (filled in by Start) to
// signal it without a race. The returned close function releases what Command opened; call it after Start.
func Command(cfg Config, pidfd *int) (cmd *exec.Cmd, release func(), err error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	exe, err := unix.FcntlInt(cfg.Exe.Fd(), unix.F_DUPFD_CLOEXEC, exeFloor)
	if err != nil {
		return nil, nil, fmt.Errorf("move executable out of the way: %w", os.NewSyscallError("fcntl", err))
	}
	cmd = &exec.Cmd{
		// Run by descriptor: the mapped uid need not be able to reach the path, and it cannot be swapped in
		// between. The descriptor is close-on-exec, so the process never holds its own binary (CVE-2019-5736).
		Path:       fmt.Sprintf("/proc/self/fd/%d", exe),
		Args:       append([]string{"spore-vmm"}, cfg.Args...),
		Env:        append([]string{}, cfg.Env...),
		Dir:        "/",
		ExtraFiles: cfg.Files,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:                 cloneflags,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(cfg.UID), Size: 1}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(cfg.GID), Size: 1}},
			GidMappingsEnableSetgroups: false,
			// Without it the process would be the overflow uid, without the capabilities Enter needs and drops.
			Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
			Setsid:     true, // no controlling terminal to push input into
			PidFD:      pidfd,
		},
	}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
	return cmd, func() { unix.Close(exe) }, nil
}

// Identity returns the uid and gid to jail a sandbox under: one of the reserved range by slot when the caller
// is root, so that no two sandboxes share an id, and the caller's own when it is not.
func Identity(slot uint32) (uid, gid uint32) {
	const base, size = 2_000_000_000, 1 << 20
	if os.Geteuid() != 0 {
		return uint32(os.Geteuid()), uint32(os.Getegid())
	}
	id := uint32(base + slot%size)
	return id, id
}
