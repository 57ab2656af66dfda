package jailer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// clearCapabilities empties the effective, permitted and inheritable sets of every thread.
func clearCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	// SAFETY: both values outlive the call, and AllThreadsSyscall passes the same pointers on every thread,
	// which the kernel only reads.
	return allThreads("capset", unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0, 0, 0)
}
