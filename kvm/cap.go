package kvm

// Capability is a KVM_CAP_ number (linux/kvm.h).
type Capability uint32

// Requirement is a capability that a machine needs, and what for.
type Requirement struct {
	Cap  Capability
	Name string // as in linux/kvm.h, without KVM_CAP_
	Why  string
}

// Capabilities by number.
const (
	CapIRQChip       Capability = 0
	CapUserMemory    Capability = 3
	CapExtCPUID      Capability = 7
	CapIRQFD         Capability = 32
	CapIOEventFD     Capability = 36
	CapAdjustClock   Capability = 39
	CapXCRs          Capability = 56
	CapGetTSCKHz     Capability = 61
	CapMaxVCPUs      Capability = 66
	CapTSCDeadline   Capability = 72
	CapReadOnlyMem   Capability = 81
	CapSplitIRQChip  Capability = 121
	CapImmediateExit Capability = 136
	CapDisableExits  Capability = 143
	CapSregs2        Capability = 200
)

// Required lists what no machine runs without.
var requiredCaps = [...]Requirement{
	{CapUserMemory, "USER_MEMORY", "guest memory is memory of this process"},
	{CapIRQChip, "IRQCHIP", "interrupt controllers in the kernel"},
	{CapExtCPUID, "EXT_CPUID", "the guest's CPUID is ours to set"},
	{CapIRQFD, "IRQFD", "devices interrupt the guest by an event descriptor"},
	{CapIOEventFD, "IOEVENTFD", "the guest kicks devices without an exit"},
	{CapImmediateExit, "IMMEDIATE_EXIT", "a vCPU can be stopped without a lost wake-up"},
	{CapReadOnlyMem, "READONLY_MEM", "pmem is read-only in the memory slot"},
}

// Required returns what no machine runs without, for a check before the first one.
func Required() []Requirement { return append([]Requirement(nil), requiredCaps[:]...) }
