package jailer

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNoJail says that a process is not in a jail made by Start.
var ErrNoJail = errors.New("not in a jail: spore starts this program, nobody else does")

// Enter is the first thing that the jailed program does: what belongs to the memory that execve(2) made, and a look
// at the rest, so that a program started in another way ends here. Any goroutine may call it.
func Enter() error {
	// No core file, and no ptrace by a process of the same uid. It belongs to the memory, so to all threads.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("enter jail: dumpable: %w", os.NewSyscallError("prctl", err))
	}
	// No memory becomes executable that was not, by whatever way. A property of the memory as well; not before Linux 6.3.
	if err := unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("enter jail: mdwe: %w", os.NewSyscallError("prctl", err))
	}
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		return fmt.Errorf("enter jail: no_new_privs: %w", ErrNoJail)
	}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]); err != nil || sets != [2]unix.CapUserData{} {
		return fmt.Errorf("enter jail: capabilities: %w", ErrNoJail)
	}
	if err := unix.Access("/proc", unix.F_OK); err != unix.ENOENT {
		return fmt.Errorf("enter jail: root: %w", ErrNoJail)
	}
	return nil
}
