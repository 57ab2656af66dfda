package net

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectored calls preadv2(2) or pwritev2(2). x/sys/unix has both, but builds its own vector for every call; here the vector is the
// caller's, so a frame allocates nothing. Nor does the runtime hear of the call, which never waits: around one that may, it wakes its
// monitor, and gives the processor to another thread.
func vectored(call uintptr, fd int, v []unix.Iovec) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)), noOffset, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// look is epoll_pwait(2) without waiting, with all signals let through, which the runtime's poller uses: x/sys/unix has only its elder.
// It returns how many events there are.
func look(poll uintptr, events []unix.EpollEvent) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, poll, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// iovec is the vector element of b, which is not empty.
func iovec(b []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
}

// cut takes n bytes off the front of v, which has more. The bytes are guest memory or ours, whole either way.
func cut(v *unix.Iovec, n uint64) {
	// SAFETY: n is less than the length, so the pointer stays inside its object or mapping.
	v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
	v.Len -= n
}
