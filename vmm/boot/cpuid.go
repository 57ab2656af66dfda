package boot

import (
	"math/bits"

	"spore/kvm"
)

// CPU is what a vCPU's CPUID depends on beside the host.
type CPU struct {
	ID          int    // APIC ID, 0 to Count-1
	Count       int    // vCPUs of the machine
	TSCKHz      uint32 // frequency of the guest's TSC; 0 leaves the leaves that tell it empty
	TSCDeadline bool   // the local APIC timer has TSC-deadline mode
}

// CPUID leaves.
const (
	leafMax         = 0x0
	leafFeatures    = 0x1
	leafCache       = 0x4
	leafStructured  = 0x7
	leafPMU         = 0xa
	leafTopology    = 0xb
	leafXSave       = 0xd
	leafTSC         = 0x15
	leafTile        = 0x1d
	leafTopologyV2  = 0x1f
	leafKVM         = 0x40000000
	leafKVMFeatures = 0x40000001
	leafTiming      = 0x40000010
	leafExtFeatures = 0x80000001
	leafAMDSizes    = 0x80000008
	leafSVM         = 0x8000000a
	leafAMDCache    = 0x8000001d
	leafAMDTopology = 0x8000001e
	leafSEV         = 0x8000001f
	leafAMDPerf     = 0x80000022
	leafAMDTopoExt  = 0x80000026
)

// TellsFrequency reports whether a leaf tells the guest the frequency of a clock.
func TellsFrequency(leaf uint32) bool { return leaf == leafTSC || leaf == leafTiming }

// Bits that are set or cleared by name.
const (
	ecx1VMX         = 1 << 5
	ecx1PDCM        = 1 << 15
	ecx1X2APIC      = 1 << 21
	ecx1TSCDeadline = 1 << 24
	ecx1OSXSave     = 1 << 27
	ecx1Hypervisor  = 1 << 31
	edx1HTT         = 1 << 28
	ebx7MPX         = 1 << 14
	ecx7PKU         = 1<<3 | 1<<4
	edx7AMX         = 1<<22 | 1<<24 | 1<<25
	ecxExtCmpLegacy = 1 << 1
	ecxExtSVM       = 1 << 2
	ecxExtIBS       = 1 << 10
	ecxExtPerf      = 1<<23 | 1<<24 | 1<<28
	xsaves          = 1 << 3
)

// kvmFeatures are the paravirtual features that a guest may use (cpuid.rst): clocks, steal time, PV end of
// interrupt, spinlock kicks, TLB flush, IPIs, yield and HLT polling control. Asynchronous page faults are left
// out: they only help a guest whose memory the host swaps.
const kvmFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<6 | 1<<7 | 1<<9 | 1<<11 | 1<<12 | 1<<13 | 1<<24

// xcr0 are the extended states that a guest may enable: x87, SSE, AVX and AVX-512. Others (MPX, PKRU, AMX) would
// make the state larger than KVM_GET_XSAVE's 4096 bytes or are inconsistent on some hosts.
const xcr0 = 1<<0 | 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7

// CPUID makes the table of one vCPU from what KVM supports. It never adds a processor feature, hides nested
// virtualisation, performance counters and memory encryption, and describes one socket of Count cores.
func CPUID(supported []kvm.CPUIDEntry, c CPU) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, 0, len(supported)+8)
	for _, e := range supported {
		switch e.Function {
		case leafTopology, leafTopologyV2, leafTSC, leafTiming, leafTile, leafTile + 1, leafSVM, leafSEV, leafAMDPerf, leafAMDTopoExt:
			continue // rebuilt below, or gone
		case leafPMU:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case leafXSave:
			if !fixXSave(&e, supported) {
				continue
			}
		default:
			fix(&e, c)
		}
		out = append(out, e)
	}
	out = append(out, topology(c)...)
	if c.TSCKHz != 0 {
		out = append(out, timing(c.TSCKHz)...)
	}
	return out
}

// fix adjusts one leaf that is kept.
func fix(e *kvm.CPUIDEntry, c CPU) {
	several := c.Count > 1
	switch e.Function {
	case leafMax:
		e.EAX = min(max(e.EAX, leafTSC), leafTopologyV2)
	case leafFeatures:
		const clflushLine = 8 << 8
		e.EBX = e.EBX&0xff | clflushLine | uint32(c.Count)<<16 | uint32(c.ID)<<24
		e.ECX = e.ECX&^(ecx1VMX|ecx1PDCM|ecx1OSXSave|ecx1TSCDeadline) | ecx1X2APIC | ecx1Hypervisor
		e.ECX |= flag(c.TSCDeadline, ecx1TSCDeadline)
		e.EDX = e.EDX&^edx1HTT | flag(several, edx1HTT)
	case leafCache, leafAMDCache:
		fixCache(e, c)
	case leafStructured:
		if e.Index == 0 {
			e.EBX &^= ebx7MPX
			e.ECX &^= ecx7PKU
			e.EDX &^= edx7AMX
		}
	case leafKVM:
		e.EAX = leafTiming
	case leafKVMFeatures:
		e.EAX &= kvmFeatures
	case leafExtFeatures:
		e.ECX &^= ecxExtSVM | ecxExtIBS | ecxExtPerf | ecxExtCmpLegacy
		e.ECX |= flag(several, ecxExtCmpLegacy)
	case leafAMDSizes:
		e.ECX = uint32(c.Count-1) | idBits(c.Count)<<12
	case leafAMDTopology:
		e.EAX, e.EBX, e.ECX, e.EDX = uint32(c.ID), uint32(c.ID), 0, 0
	}
}

// fixCache describes caches private to a core up to level 2 and shared by all above.
func fixCache(e *kvm.CPUIDEntry, c CPU) {
	if e.EAX&0x1f == 0 {
		return // no more caches
	}
	sharing := uint32(0)
	if level := e.EAX >> 5 & 7; level > 2 {
		sharing = 1<<idBits(c.Count) - 1
	}
	e.EAX = e.EAX&0x3fff | sharing<<14
	if e.Function == leafCache {
		e.EAX |= (1<<idBits(c.Count) - 1) << 26
	}
}

// fixXSave limits leaf 0xD to the states of xcr0 and recomputes its sizes; false drops the entry.
func fixXSave(e *kvm.CPUIDEntry, all []kvm.CPUIDEntry) bool {
	const legacyArea = 576 // x87 and SSE state and the XSAVE header
	switch e.Index {
	case 0:
		e.EAX &= xcr0
		e.EDX = 0
		e.ECX = legacyArea
		for _, s := range all {
			if s.Function == leafXSave && s.Index >= 2 && s.Index < 32 && e.EAX>>s.Index&1 != 0 {
				e.ECX = max(e.ECX, s.EAX+s.EBX)
			}
		}
		e.EBX = e.ECX // for the states enabled now: KVM keeps it up to date, some only once XCR0 is written
	case 1:
		e.EAX &^= xsaves
		e.EBX, e.ECX, e.EDX = 0, 0, 0
	default:
		return e.Index < 32 && xcr0>>e.Index&1 != 0
	}
	return true
}

// topology describes one thread per core and Count cores in one socket, in both leaves that tell.
func topology(c CPU) []kvm.CPUIDEntry {
	const (
		levelSMT  = 1 << 8
		levelCore = 2 << 8
	)
	var out []kvm.CPUIDEntry
	for _, leaf := range []uint32{leafTopology, leafTopologyV2} {
		entry := func(index, shift, count, level uint32) {
			out = append(out, kvm.CPUIDEntry{Function: leaf, Index: index, Flags: kvm.CPUIDSignificantIndex,
				EAX: shift, EBX: count, ECX: index | level, EDX: uint32(c.ID)})
		}
		entry(0, 0, 1, levelSMT)
		entry(1, idBits(c.Count), uint32(c.Count), levelCore)
		entry(2, 0, 0, 0)
	}
	return out
}

// timing tells the TSC's frequency in the two places where guests look: leaf 0x15 (a crystal of 1 kHz times its
// multiple would not be believed, so 1 MHz) and the hypervisor timing leaf.
func timing(khz uint32) []kvm.CPUIDEntry {
	const (
		crystalHz = 1_000_000
		busKHz    = 1_000_000 // KVM's local APIC timer counts nanoseconds
	)
	return []kvm.CPUIDEntry{
		{Function: leafTSC, EAX: 1000, EBX: khz, ECX: crystalHz},
		{Function: leafTiming, EAX: khz, EBX: busKHz},
	}
}

// idBits is how many bits of an APIC ID number n cores.
func idBits(n int) uint32 { return uint32(bits.Len(uint(n - 1))) }

func flag(on bool, bit uint32) uint32 {
	if on {
		return bit
	}
	return 0
}
