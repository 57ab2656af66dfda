package boot

import (
	"encoding/binary"

	"spore/guestmem"
	"spore/kvm"
)

// Control register bits (Intel SDM vol. 3 §2.5).
const (
	cr0PE   = 1 << 0
	cr0MP   = 1 << 1
	cr0ET   = 1 << 4
	cr0NE   = 1 << 5
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10
)

// Page table entry bits.
const (
	ptePresent = 1 << 0
	pteWrite   = 1 << 1
	pteHuge    = 1 << 7
)

// Selectors of the boot protocol: __BOOT_CS and __BOOT_DS.
const (
	selCode = 0x10
	selData = 0x18
)

var gdt = [4]uint64{0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff}

// WriteTables writes the GDT and page tables that map the first gib GiB of guest physical memory to
// themselves with 2 MiB pages. gib is 1 to 4.
func WriteTables(mem *guestmem.Memory, gib int) error {
	if err := writeWords(mem, GDTBase, gdt[:]); err != nil {
		return wrap("GDT", err)
	}
	pdpt := PML4Base + pageSize
	if err := writeWords(mem, PML4Base, []uint64{uint64(pdpt) | ptePresent | pteWrite}); err != nil {
		return wrap("page map", err)
	}
	directories := make([]uint64, gib)
	for i := range directories {
		pd := pdpt + pageSize*guestmem.GPA(1+i)
		directories[i] = uint64(pd) | ptePresent | pteWrite
		entries := make([]uint64, 512)
		for j := range entries {
			entries[j] = uint64(i)<<30 | uint64(j)<<21 | ptePresent | pteWrite | pteHuge
		}
		if err := writeWords(mem, pd, entries); err != nil {
			return wrap("page directory", err)
		}
	}
	return wrap("page directory pointers", writeWords(mem, pdpt, directories))
}

func writeWords(mem *guestmem.Memory, at guestmem.GPA, words []uint64) error {
	b := make([]byte, 0, 8*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return mem.WriteAt(b, at)
}

// EnterLongMode changes the special registers of a vCPU in its reset state to those of the 64-bit entry:
// flat segments, the page tables of WriteTables, interrupts off.
func EnterLongMode(s *kvm.Sregs) {
	code := kvm.Segment{Limit: 0xffffffff, Selector: selCode, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: selData, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.CS = code
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = kvm.Segment{Limit: 0x67, Type: 11, Present: 1}
	s.GDT = kvm.DTable{Base: uint64(GDTBase), Limit: uint16(8*len(gdt) - 1)}
	s.IDT = kvm.DTable{}
	s.CR0 = cr0PE | cr0MP | cr0ET | cr0NE | cr0PG
	s.CR3 = uint64(PML4Base)
	s.CR4 = cr4PAE
	s.EFER = eferLME | eferLMA
}

// EntryRegs are the general-purpose registers at the 64-bit entry point.
func EntryRegs(entry guestmem.GPA) kvm.Regs {
	return kvm.Regs{
		RIP:    uint64(entry),
		RSI:    uint64(ZeroPageBase), // boot.rst: "%rsi must hold the base address of the struct boot_params"
		RSP:    uint64(StackTop),
		RBP:    uint64(StackTop),
		RFLAGS: 2, // the bit that is always 1
	}
}

// EntryMSRs are the MSRs that firmware would have set.
func EntryMSRs() []kvm.MSR {
	const (
		miscEnable  = 0x1a0
		fastStrings = 1 << 0
		mtrrDefType = 0x2ff
		mtrrEnable  = 1 << 11
		writeBack   = 6
	)
	return []kvm.MSR{
		{Index: miscEnable, Value: fastStrings},
		{Index: mtrrDefType, Value: mtrrEnable | writeBack},
	}
}
