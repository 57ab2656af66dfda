package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// addEntropy gives the kernel a struct rand_pool_info (random(4)).
func addEntropy(fd uintptr, pool []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
