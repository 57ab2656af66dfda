package kvm

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loggedSlots is for how many slots a LogSwitch is made at most.
const loggedSlots = 2

// LogSwitch begins and ends the dirty log of memory slots (KVM_MEM_LOG_DIRTY_PAGES). That is a flag of the ioctl that sets a slot, with all
// else that it says; a filter of system calls sees where that is written, and not what. So it is written beforehand, where it
// cannot be changed: in a page that can only be read, at an address that a filter can name.
type LogSwitch struct {
	vm    *VM
	page  unsafe.Pointer
	slots int
}

// logTable is what the page begins with: each slot without the log and with it. The filter counts on entries of 32 bytes (vmm/policy).
type logTable [loggedSlots][2]memSlot

var _ = [1]struct{}{}[unsafe.Sizeof(logTable{})-4*32]

// NewLogSwitch makes the switch of slots that are set. Their table is at the address at, a multiple of a page where nothing is mapped; 0 is
// anywhere.
func (vm *VM) NewLogSwitch(at uintptr, slots []MemSlot) (*LogSwitch, error) {
	if len(slots) == 0 || len(slots) > loggedSlots {
		return nil, fmt.Errorf("make log switch: %d memory slots, want 1 to %d", len(slots), loggedSlots)
	}
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if at != 0 {
		flags |= unix.MAP_FIXED_NOREPLACE
	}
	// SAFETY: at is no pointer to anything; the kernel maps fresh memory there or refuses.
	page, err := unix.MmapPtr(-1, 0, *(*unsafe.Pointer)(unsafe.Pointer(&at)), unsafe.Sizeof(logTable{}), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("make log switch: %w", os.NewSyscallError("mmap", err))
	}
	if at != 0 && uintptr(page) != at { // a kernel that does not know MAP_FIXED_NOREPLACE
		return nil, errors.Join(fmt.Errorf("make log switch: no place at %#x", at), unix.MunmapPtr(page, unsafe.Sizeof(logTable{})))
	}
	table := (*logTable)(page) // the page is larger
	for i := range table {
		s := slots[min(i, len(slots)-1)] // what is left over says the same
		table[i][0] = s.raw()
		s.LogDirty = true
		table[i][1] = s.raw()
	}
	if err := unix.Mprotect(unsafe.Slice((*byte)(page), unsafe.Sizeof(*table)), unix.PROT_READ); err != nil {
		return nil, errors.Join(fmt.Errorf("make log switch: %w", os.NewSyscallError("mprotect", err)), unix.MunmapPtr(page, unsafe.Sizeof(*table)))
	}
	return &LogSwitch{vm, page, len(slots)}, nil
}

// Set begins the log of all slots, with nothing in it, or ends it. The guest may run.
func (s *LogSwitch) Set(on bool) error {
	which := 0
	if on {
		which = 1
	}
	for i := range s.slots {
		if _, err := ioctl("KVM_SET_USER_MEMORY_REGION", s.vm.fd, setMemory, uintptr(unsafe.Pointer(&(*logTable)(s.page)[i][which]))); err != nil {
			return fmt.Errorf("dirty log of slot %d: %w", i, err)
		}
	}
	return nil
}

// Close gives the table back.
func (s *LogSwitch) Close() error {
	return os.NewSyscallError("munmap", unix.MunmapPtr(s.page, unsafe.Sizeof(logTable{})))
}
