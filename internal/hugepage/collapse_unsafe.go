// Package hugepage asks the kernel to keep blocks of a file in huge pages.
package hugepage

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Size of a huge page in bytes.
const Size = 2 << 20

// Collapse asks the kernel to keep the block of f at off, a multiple of Size, in one huge page for as long as it keeps it at all. The block need
// not be whole in a file on tmpfs; what a file on a disk must be, its file system says. f is open for reading, and stays as it is. The kernel
// must be Linux 6.1 or newer; where the file system has no huge pages (tmpfs always has, others with CONFIG_READ_ONLY_THP_FOR_FS, and then
// only while nobody has the file open for writing) the error is EINVAL (madvise(2), MADV_COLLAPSE).
func Collapse(f *os.File, off int64) error {
	room, err := unix.Mmap(-1, 0, 2*Size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("collapse %s: %w", f.Name(), os.NewSyscallError("mmap", err))
	}
	defer unix.Munmap(room)
	start := uintptr(unsafe.Pointer(unsafe.SliceData(room)))
	at := (start+Size-1)&^(Size-1) - start
	if err := collapse(room[at:at+Size], f, off); err != nil {
		return fmt.Errorf("collapse %s at %#x: %w", f.Name(), off, err)
	}
	return nil
}

// collapse maps the block in the window for the time being; as a program, for of files on a disk Linux takes only those, unless the mount
// does not allow it.
func collapse(window []byte, f *os.File, off int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		for _, prot := range []int{unix.PROT_READ | unix.PROT_EXEC, unix.PROT_READ} {
			_, inner = unix.MmapPtr(int(fd), off, unsafe.Pointer(unsafe.SliceData(window)), Size, prot, unix.MAP_SHARED|unix.MAP_FIXED)
			if !errors.Is(inner, unix.EPERM) {
				break
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError("mmap", inner)
	}
	if err != nil {
		return err
	}
	// Linux 6.1 collapses only where there is a page table.
	if err := unix.Madvise(window[:os.Getpagesize()], unix.MADV_POPULATE_READ); err != nil {
		return os.NewSyscallError("madvise", err)
	}
	err = unix.Madvise(window, unix.MADV_COLLAPSE)
	if err == unix.EAGAIN { // pages that are just being written or moved
		err = unix.Madvise(window, unix.MADV_COLLAPSE)
	}
	return os.NewSyscallError("madvise", err)
}
