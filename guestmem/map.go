package guestmem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MapAnon maps size bytes of zeroed private memory that costs nothing until it is touched. Unmap releases it.
func MapAnon(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, os.NewSyscallError("mmap", err))
	}
	return b, nil
}

// MapFile maps size bytes of f from off on. prot and flags are mmap(2)'s. Unmap releases the mapping.
func MapFile(f *os.File, off int64, size int, prot, flags int) ([]byte, error) {
	b, err := unix.Mmap(int(f.Fd()), off, size, prot, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of %s: %w", size, f.Name(), os.NewSyscallError("mmap", err))
	}
	return b, nil
}

// Unmap releases what MapAnon or MapFile returned. Nothing may use the memory afterwards.
func Unmap(b []byte) error { return os.NewSyscallError("munmap", unix.Munmap(b)) }
