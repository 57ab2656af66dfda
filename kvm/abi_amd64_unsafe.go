package kvm

import "unsafe"

// The layouts of <linux/kvm.h> and <asm/kvm.h> that cross the ioctl boundary, and the ioctl numbers computed
// from them. Every number is pinned to the header's value: a layout that drifts does not compile.

// Regs is struct kvm_regs: the general-purpose registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment. Limit is in bytes whatever G says.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// DTable is struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs2: the special registers.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64
	PDPTRs                  [4]uint64
}

// FPU is struct kvm_fpu: x87 and SSE state.
type FPU struct {
	FPR        [8][16]uint8
	FCW, FSW   uint16
	FTWX       uint8 // fxsave format
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XSave is struct kvm_xsave: the XSAVE area in the standard format.
type XSave struct{ Region [1024]uint32 }

// XCRs is struct kvm_xcrs.
type XCRs struct {
	Count uint32
	Flags uint32
	XCR   [16]struct {
		Number uint32
		_      uint32
		Value  uint64
	}
	_ [16]uint64
}

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB       [4]uint64
	DR6, DR7 uint64
	Flags    uint64
	_        [9]uint64
}

// LAPIC is struct kvm_lapic_state: the register page of a local APIC.
type LAPIC struct{ Regs [1024]uint8 }

// MPState is struct kvm_mp_state.
type MPState uint32

// Values of MPState.
const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1 // an AP that waits for INIT
	MPInitReceived  MPState = 2
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)

// Events is struct kvm_vcpu_events: exceptions, interrupts and NMIs in flight.
type Events struct {
	Exception struct {
		Injected, Number, HasErrorCode, Pending uint8
		ErrorCode                               uint32
	}
	Interrupt struct{ Injected, Number, Soft, Shadow uint8 }
	NMI       struct{ Injected, Pending, Masked, _ uint8 }
	SIPI      uint32
	Flags     uint32
	SMI       struct{ SMM, Pending, InsideNMI, LatchedINIT uint8 }
	Triple    uint8
	_         [26]uint8
	Payload   struct {
		Present uint8
		Value   [8]uint8
	}
}

// MSR is struct kvm_msr_entry.
type MSR struct {
	Index uint32 `json:"index"`
	_     uint32
	Value uint64 `json:"value"`
}

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function uint32
	Index    uint32
	Flags    uint32 // CPUIDSignificantIndex or 0
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
	_        [3]uint32
}

// CPUIDSignificantIndex marks an entry whose Index matters (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const CPUIDSignificantIndex = 1

// IRQChip is struct kvm_irqchip: the state of one chip.
type IRQChip struct {
	ID    uint32 // ChipPICMaster, ChipPICSlave or ChipIOAPIC
	_     uint32
	State [512]uint8
}

// Values of IRQChip.ID.
const (
	ChipPICMaster = 0
	ChipPICSlave  = 1
	ChipIOAPIC    = 2
)

// Clock is struct kvm_clock_data: the VM's kvmclock.
type Clock struct {
	Nanos    uint64
	Flags    uint32
	_        uint32
	Realtime uint64
	HostTSC  uint64
	_        [4]uint32
}

type memSlot struct {
	slot, flags  uint32
	gpa, size    uint64
	userspaceHVA uint64
}

type irqLine struct{ irq, level uint32 }

type irqfd struct {
	fd, gsi, flags, resampleFD uint32
	_                          [16]uint8
}

type ioeventfd struct {
	match, addr uint64
	length      uint32
	fd          int32
	flags       uint32
	_           [36]uint8
}

type enableCap struct {
	capability, flags uint32
	args              [4]uint64
	_                 [64]uint8
}

type dirtyLog struct {
	slot   uint32
	_      uint32
	bitmap uint64
}

const maxCPUID = 256

// cpuidTable is struct kvm_cpuid2 with room for maxCPUID entries.
type cpuidTable struct {
	count   uint32
	_       uint32
	entries [maxCPUID]CPUIDEntry
}

const maxMSRs = 256

// msrTable is struct kvm_msrs with room for maxMSRs entries.
type msrTable struct {
	count   uint32
	_       uint32
	entries [maxMSRs]MSR
}

// msrList is struct kvm_msr_list with room for maxMSRs indices.
type msrList struct {
	count   uint32
	indices [maxMSRs]uint32
}

const (
	kvmio = 0xae << 8
	iow   = 1 << 30
	ior   = 2 << 30
	iowr  = iow | ior
	// The header part of the variable-length structures is all that their numbers encode.
	headSize    = 8
	msrListSize = 4
)

const (
	getAPIVersion    = kvmio | 0x00
	createVM         = kvmio | 0x01
	getMSRIndexList  = iowr | msrListSize<<16 | kvmio | 0x02
	checkExtension   = kvmio | 0x03
	getVCPUMmapSize  = kvmio | 0x04
	getSupportedCPU  = iowr | headSize<<16 | kvmio | 0x05
	createVCPU       = kvmio | 0x41
	getDirtyLog      = iow | unsafe.Sizeof(dirtyLog{})<<16 | kvmio | 0x42
	setMemory        = iow | unsafe.Sizeof(memSlot{})<<16 | kvmio | 0x46
	setTSSAddr       = kvmio | 0x47
	setIdentityMap   = iow | 8<<16 | kvmio | 0x48
	createIRQChip    = kvmio | 0x60
	setIRQLine       = iow | unsafe.Sizeof(irqLine{})<<16 | kvmio | 0x61
	getIRQChip       = iowr | unsafe.Sizeof(IRQChip{})<<16 | kvmio | 0x62
	setIRQChip       = ior | unsafe.Sizeof(IRQChip{})<<16 | kvmio | 0x63
	assignIRQFD      = iow | unsafe.Sizeof(irqfd{})<<16 | kvmio | 0x76
	assignIOEventFD  = iow | unsafe.Sizeof(ioeventfd{})<<16 | kvmio | 0x79
	setClock         = iow | unsafe.Sizeof(Clock{})<<16 | kvmio | 0x7b
	getClock         = ior | unsafe.Sizeof(Clock{})<<16 | kvmio | 0x7c
	run              = kvmio | 0x80
	getRegs          = ior | unsafe.Sizeof(Regs{})<<16 | kvmio | 0x81
	setRegs          = iow | unsafe.Sizeof(Regs{})<<16 | kvmio | 0x82
	getSregs         = ior | sregsSize<<16 | kvmio | 0x83
	setSregs         = iow | sregsSize<<16 | kvmio | 0x84
	getMSRs          = iowr | headSize<<16 | kvmio | 0x88
	setMSRs          = iow | headSize<<16 | kvmio | 0x89
	getFPU           = ior | unsafe.Sizeof(FPU{})<<16 | kvmio | 0x8c
	setFPU           = iow | unsafe.Sizeof(FPU{})<<16 | kvmio | 0x8d
	getLAPIC         = ior | unsafe.Sizeof(LAPIC{})<<16 | kvmio | 0x8e
	setLAPIC         = iow | unsafe.Sizeof(LAPIC{})<<16 | kvmio | 0x8f
	setCPUID         = iow | headSize<<16 | kvmio | 0x90
	getMPState       = ior | unsafe.Sizeof(MPState(0))<<16 | kvmio | 0x98
	setMPState       = iow | unsafe.Sizeof(MPState(0))<<16 | kvmio | 0x99
	getEvents        = ior | unsafe.Sizeof(Events{})<<16 | kvmio | 0x9f
	setEvents        = iow | unsafe.Sizeof(Events{})<<16 | kvmio | 0xa0
	getDebugRegs     = ior | unsafe.Sizeof(DebugRegs{})<<16 | kvmio | 0xa1
	setDebugRegs     = iow | unsafe.Sizeof(DebugRegs{})<<16 | kvmio | 0xa2
	setTSCKHz        = kvmio | 0xa2
	getTSCKHz        = kvmio | 0xa3
	enableCapability = iow | unsafe.Sizeof(enableCap{})<<16 | kvmio | 0xa3
	getXSave         = ior | unsafe.Sizeof(XSave{})<<16 | kvmio | 0xa4
	setXSave         = iow | unsafe.Sizeof(XSave{})<<16 | kvmio | 0xa5
	getXCRs          = ior | unsafe.Sizeof(XCRs{})<<16 | kvmio | 0xa6
	setXCRs          = iow | unsafe.Sizeof(XCRs{})<<16 | kvmio | 0xa7
	clockCtrl        = kvmio | 0xad
	getSregs2        = ior | unsafe.Sizeof(Sregs{})<<16 | kvmio | 0xcc
	setSregs2        = iow | unsafe.Sizeof(Sregs{})<<16 | kvmio | 0xcd
)

// sregsSize is sizeof(struct kvm_sregs): Sregs up to APICBase, then 32 bytes of interrupt bitmap.
const sregsSize = unsafe.Offsetof(Sregs{}.Flags) + 32

// The numbers in <linux/kvm.h>; a changed layout does not compile.
var (
	_ = [1]struct{}{}[getMSRIndexList-0xc004ae02]
	_ = [1]struct{}{}[getSupportedCPU-0xc008ae05]
	_ = [1]struct{}{}[getDirtyLog-0x4010ae42]
	_ = [1]struct{}{}[setMemory-0x4020ae46]
	_ = [1]struct{}{}[setIdentityMap-0x4008ae48]
	_ = [1]struct{}{}[setIRQLine-0x4008ae61]
	_ = [1]struct{}{}[getIRQChip-0xc208ae62]
	_ = [1]struct{}{}[setIRQChip-0x8208ae63]
	_ = [1]struct{}{}[assignIRQFD-0x4020ae76]
	_ = [1]struct{}{}[assignIOEventFD-0x4040ae79]
	_ = [1]struct{}{}[setClock-0x4030ae7b]
	_ = [1]struct{}{}[getClock-0x8030ae7c]
	_ = [1]struct{}{}[getRegs-0x8090ae81]
	_ = [1]struct{}{}[setRegs-0x4090ae82]
	_ = [1]struct{}{}[getSregs-0x8138ae83]
	_ = [1]struct{}{}[setSregs-0x4138ae84]
	_ = [1]struct{}{}[getMSRs-0xc008ae88]
	_ = [1]struct{}{}[setMSRs-0x4008ae89]
	_ = [1]struct{}{}[getFPU-0x81a0ae8c]
	_ = [1]struct{}{}[setFPU-0x41a0ae8d]
	_ = [1]struct{}{}[getLAPIC-0x8400ae8e]
	_ = [1]struct{}{}[setLAPIC-0x4400ae8f]
	_ = [1]struct{}{}[setCPUID-0x4008ae90]
	_ = [1]struct{}{}[getMPState-0x8004ae98]
	_ = [1]struct{}{}[setMPState-0x4004ae99]
	_ = [1]struct{}{}[getEvents-0x8040ae9f]
	_ = [1]struct{}{}[setEvents-0x4040aea0]
	_ = [1]struct{}{}[getDebugRegs-0x8080aea1]
	_ = [1]struct{}{}[setDebugRegs-0x4080aea2]
	_ = [1]struct{}{}[enableCapability-0x4068aea3]
	_ = [1]struct{}{}[getXSave-0x9000aea4]
	_ = [1]struct{}{}[setXSave-0x5000aea5]
	_ = [1]struct{}{}[getXCRs-0x8188aea6]
	_ = [1]struct{}{}[setXCRs-0x4188aea7]
	_ = [1]struct{}{}[getSregs2-0x8140aecc]
	_ = [1]struct{}{}[setSregs2-0x4140aecd]
	_ = [1]struct{}{}[unsafe.Sizeof(CPUIDEntry{})-0x28]
	_ = [1]struct{}{}[unsafe.Sizeof(MSR{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(cpuidTable{}.entries)-headSize]
	_ = [1]struct{}{}[unsafe.Offsetof(msrTable{}.entries)-headSize]
	_ = [1]struct{}{}[unsafe.Offsetof(msrList{}.indices)-msrListSize]
)
