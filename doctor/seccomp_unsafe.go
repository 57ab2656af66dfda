package doctor

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// askSeccompAction asks whether the kernel's filters know an action (SECCOMP_GET_ACTION_AVAIL, seccomp(2)).
func askSeccompAction(action uint32) (string, error) {
	// SAFETY: the kernel reads four bytes, and action lives on this stack for the call.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return "", os.NewSyscallError("seccomp", errno)
	}
	return "filters can kill the process", nil
}
