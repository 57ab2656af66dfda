package vmm

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guard is the size in bytes of the inaccessible stretch before and after every mapping of guest memory: an
// access that runs out of it faults instead of reaching memory of ours.
const guard = hugePage

// address is where b is in this process.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// mapping is a stretch of this process's memory that backs guest memory.
type mapping struct {
	whole []byte // with the guards
	bytes []byte // without; starts at a multiple of 2 MiB
}

// reserve makes an inaccessible mapping of size bytes between guards.
func reserve(size int) (mapping, error) {
	whole, err := unix.Mmap(-1, 0, size+2*guard+hugePage, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return mapping{}, fmt.Errorf("reserve %d bytes: %w", size, os.NewSyscallError("mmap", err))
	}
	start := address(whole)
	off := int((start+guard+hugePage-1)&^(hugePage-1) - start)
	return mapping{whole: whole, bytes: whole[off : off+size : off+size]}, nil
}

// mapRAM maps size bytes of zeroed memory. Nothing is allocated before it is touched.
func mapRAM(size int) (mapping, error) {
	m, err := reserve(size)
	if err != nil {
		return m, err
	}
	if err := unix.Mprotect(m.bytes, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		m.unmap()
		return mapping{}, fmt.Errorf("map %d bytes of guest memory: %w", size, os.NewSyscallError("mprotect", err))
	}
	return m, nil
}

// pmemUnit is what Linux wants a range of persistent memory to be a multiple of; it does not take others
// (memremap_compat_align).
const pmemUnit = 16 << 20

// mapReadOnly maps length bytes of f, rounded up to pmemUnit with zeros. The mapping shares the page cache.
func mapReadOnly(f *os.File, length int64) (mapping, error) {
	m, err := reserve(int((length + pmemUnit - 1) &^ (pmemUnit - 1)))
	if err != nil {
		return m, err
	}
	if err := unix.Mprotect(m.bytes, unix.PROT_READ); err != nil {
		m.unmap()
		return mapping{}, fmt.Errorf("map zeros: %w", os.NewSyscallError("mprotect", err))
	}
	if err := overlay(m.bytes[:length], f, 0, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		m.unmap()
		return mapping{}, err
	}
	return m, nil
}

// overlay replaces the pages of b, which must start on a page of a mapping, by those of f from off on.
func overlay(b []byte, f *os.File, off int64, prot, flags int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("map %s: %w", f.Name(), err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		_, inner = unix.MmapPtr(int(fd), off, unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)), prot, flags|unix.MAP_FIXED)
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", f.Name(), os.NewSyscallError("mmap", err))
	}
	return nil
}

func (m mapping) unmap() error {
	if m.whole == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(m.whole))
}
