// Package boot puts a guest kernel into guest memory and says with which registers the first vCPU enters it:
// the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst), its boot_params, the page tables and the
// CPUID that go with it. It knows nothing of devices.
package boot

import (
	"fmt"

	"spore/guestmem"
)

// The guest physical address space. Below 1 MiB lies what the kernel reads once at start.
const (
	GDTBase       guestmem.GPA = 0x500    // 4 descriptors; below it is the real-mode area nobody uses
	ZeroPageBase  guestmem.GPA = 0x7000   // struct boot_params
	StackTop      guestmem.GPA = 0x8ff0   // the entry stack of bare-metal test guests
	PML4Base      guestmem.GPA = 0x9000   // then one page directory pointer table, then page directories
	CmdlineBase   guestmem.GPA = 0x20000  // kernel command line
	LowMemoryEnd  guestmem.GPA = 0x9f000  // end of conventional memory
	ACPIBase      guestmem.GPA = 0xe0000  // ACPI tables, where firmware would have them
	ACPIEnd       guestmem.GPA = 0xf0000  // end of the tables
	GenIDBase     guestmem.GPA = 0xf0000  // page with the VM generation identifier
	HighMemory    guestmem.GPA = 0x100000 // kernels load at or above
	MMIOGapStart  guestmem.GPA = 3 << 30  // devices, IOAPIC, local APICs and the VT-x pages lie in the gap
	MMIOGapEnd    guestmem.GPA = 4 << 30
	DeviceBase    guestmem.GPA = 0xd0000000 // virtio-mmio transports, DeviceStride apart
	IOAPICBase    guestmem.GPA = 0xfec00000
	LocalAPICBase guestmem.GPA = 0xfee00000
	TSSBase       guestmem.GPA = 0xfffbd000 // KVM_SET_TSS_ADDR: four pages for VT-x
)

// DeviceStride is the distance between two virtio-mmio transports, and the size of each.
const DeviceStride = 0x1000

// MaxCmdline is the longest kernel command line in bytes, without its terminating zero: COMMAND_LINE_SIZE - 1.
const MaxCmdline = 2047

// Range is a stretch of guest physical memory.
type Range struct {
	Base guestmem.GPA
	Size uint64 // bytes
}

// End is the first address after r.
func (r Range) End() guestmem.GPA { return r.Base + guestmem.GPA(r.Size) }

// RAM lays out size bytes of guest RAM: up to the gap, and the rest from 4 GiB on.
func RAM(size uint64) []Range {
	low := min(size, uint64(MMIOGapStart))
	ranges := []Range{{Base: 0, Size: low}}
	if size > low {
		ranges = append(ranges, Range{Base: MMIOGapEnd, Size: size - low})
	}
	return ranges
}

// E820 types (ACPI 6.5 §15.1).
const (
	e820RAM      = 1
	e820Reserved = 2
)

type e820Entry struct {
	Range
	kind uint32
}

// e820 is the firmware memory map of a guest with the given RAM.
func e820(ram []Range) []e820Entry {
	entries := []e820Entry{
		{Range{0, uint64(LowMemoryEnd)}, e820RAM},
		{Range{LowMemoryEnd, uint64(HighMemory - LowMemoryEnd)}, e820Reserved},
	}
	for _, r := range ram {
		if r.Base < HighMemory {
			r = Range{HighMemory, r.Size - uint64(HighMemory)}
		}
		entries = append(entries, e820Entry{r, e820RAM})
	}
	return entries
}

// wrap adds what was being done to the error of a guest memory access. Such an error means that a layout
// constant lies outside the guest's RAM, which Config's minimum excludes.
func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	return nil
}
