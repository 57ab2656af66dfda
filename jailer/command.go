package jailer

import (
	"fmt"
	"os"
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

// Process is a process in its jail.
type Process struct {
	*os.Process
	PidFD int // for signals and waits without a race; -1 where the kernel has none. The caller closes it
}

// Start is the parent's half: it starts a process that is born in its namespaces with one mapped id and
// exactly the descriptors of cfg. The caller waits for it.
func Start(cfg Config) (*Process, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	exe, err := unix.FcntlInt(cfg.Exe.Fd(), unix.F_DUPFD_CLOEXEC, exeFloor)
	if err != nil {
		return nil, fmt.Errorf("move executable out of the way: %w", os.NewSyscallError("fcntl", err))
	}
	defer unix.Close(exe)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := cfg.Stderr
	if stderr == nil {
		stderr = null
	}
	p := &Process{PidFD: -1}
	// Run by descriptor: the mapped uid need not be able to reach the path, and it cannot be swapped in between.
	// The descriptor is close-on-exec, so the process never holds its own binary (CVE-2019-5736).
	path := fmt.Sprintf("/proc/self/fd/%d", exe)
	p.Process, err = os.StartProcess(path, append([]string{"spore-vmm"}, cfg.Args...), &os.ProcAttr{
		Dir:   "/",
		Env:   append([]string{}, cfg.Env...),
		Files: append([]*os.File{null, null, stderr}, cfg.Files...),
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 cloneflags,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(cfg.UID), Size: 1}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(cfg.GID), Size: 1}},
			GidMappingsEnableSetgroups: false,
			// Without it the process would be the overflow uid, without the capabilities Enter needs and drops.
			Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
			Setsid:     true, // no controlling terminal to push input into
			PidFD:      &p.PidFD,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start jailed process: %w", err)
	}
	return p, nil
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
