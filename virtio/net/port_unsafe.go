package net

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectored calls preadv2(2) or pwritev2(2). x/sys/unix has both, but builds its own vector for every call; here the vector is the
// caller's, so a frame allocates nothing.
func vectored(call uintptr, fd int, v []unix.Iovec) (int, error) {
	for {
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)), noOffset, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// wait is epoll_pwait(2) with all signals let through, which the runtime's poller uses: x/sys/unix has only its elder. It returns the
// events that there are, at once if timeout is 0 and after any time if it is -1.
func (p *port) wait(events []unix.EpollEvent, timeout int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeout), 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
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
