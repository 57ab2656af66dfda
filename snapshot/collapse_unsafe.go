package snapshot

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"spore/internal/sparse"
)

// collapseBlock is the size of a huge page in bytes.
const collapseBlock = 2 << 20

// CollapseMemory is Collapse of this machine's memory. Nobody may have it open for writing.
func (d *Dormant) CollapseMemory() error {
	f, err := d.OpenMemory()
	if err != nil {
		return err
	}
	defer f.Close()
	return Collapse(f)
}

// Collapse asks the kernel to keep the filled blocks of 2 MiB of a memory file in huge pages, as long as it keeps them at all: a guest that
// wakes from it then maps such a block, while it only reads it, as one. f is open for reading, and nobody may have it open for
// writing. The kernel must be Linux 6.1 or newer; where the file system does not have huge pages (tmpfs always does, others
// with CONFIG_READ_ONLY_THP_FOR_FS) the error is EINVAL. Nothing depends on it (madvise(2), MADV_COLLAPSE).
func Collapse(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	room, err := unix.Mmap(-1, 0, 2*collapseBlock, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("collapse memory: %w", os.NewSyscallError("mmap", err))
	}
	defer unix.Munmap(room)
	start := uintptr(unsafe.Pointer(unsafe.SliceData(room)))
	at := (start+collapseBlock-1)&^(collapseBlock-1) - start
	window := room[at : at+collapseBlock]
	done := int64(0)
	for e, err := range sparse.Extents(f, st.Size()) {
		if err != nil {
			return fmt.Errorf("collapse memory: %w", err)
		}
		first := max(done, e.Offset&^(collapseBlock-1))
		for ; first < e.Offset+e.Length && first+collapseBlock <= st.Size(); first += collapseBlock {
			if err := collapse(window, f, first); err != nil {
				return fmt.Errorf("collapse memory at %#x: %w", first, err)
			}
		}
		done = first
	}
	return nil
}

// collapse makes the block of f at off a huge page. It is mapped in the window meanwhile; as a program, for of files on a disk Linux takes
// only those, unless the mount does not allow it.
func collapse(window []byte, f *os.File, off int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		for _, prot := range []int{unix.PROT_READ | unix.PROT_EXEC, unix.PROT_READ} {
			_, inner = unix.MmapPtr(int(fd), off, unsafe.Pointer(unsafe.SliceData(window)), collapseBlock, prot, unix.MAP_SHARED|unix.MAP_FIXED)
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
