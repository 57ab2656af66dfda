package block

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectored calls preadv2(2) or pwritev2(2). x/sys/unix has both, but builds its own vector for every call; here the
// vector is the caller's, so a request allocates nothing.
func vectored(call uintptr, fd int, iov []unix.Iovec, off int64, flags int) (int, error) {
	if len(iov) == 0 {
		return 0, nil
	}
	// On 64-bit machines the low word carries the whole offset.
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), uintptr(off), 0, uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
