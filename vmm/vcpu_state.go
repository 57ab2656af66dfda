package vmm

import (
	"fmt"
	"slices"

	"spore/kvm"
	"spore/vmm/snapshot"
)

// vcpuStep moves one part of the state between a parked vCPU and a snapshot.
type vcpuStep struct {
	name string
	get  func(v *kvm.VCPU, s *snapshot.VCPU) error
	set  func(v *kvm.VCPU, s *snapshot.VCPU) error
}

// vcpuSteps in the order in which they are set; each comes after what it depends on. Getting them goes the other way
// round: MP state, which settles pending INIT and SIPI, first of all, and the LAPIC before the MSRs that belong to it.
var vcpuSteps = []vcpuStep{
	{"registers", get((*kvm.VCPU).Regs, func(s *snapshot.VCPU) *kvm.Regs { return &s.Regs }),
		set((*kvm.VCPU).SetRegs, func(s *snapshot.VCPU) *kvm.Regs { return &s.Regs })},
	{"xsave", getPointer((*kvm.VCPU).XSave, func(s *snapshot.VCPU) *kvm.XSave { return &s.XSave }),
		set((*kvm.VCPU).SetXSave, func(s *snapshot.VCPU) *kvm.XSave { return &s.XSave })},
	{"xcrs", get((*kvm.VCPU).XCRs, func(s *snapshot.VCPU) *kvm.XCRs { return &s.XCRs }),
		set((*kvm.VCPU).SetXCRs, func(s *snapshot.VCPU) *kvm.XCRs { return &s.XCRs })},
	// The APIC's base address and mode are in the special registers: before its registers and deadline.
	{"special registers", get((*kvm.VCPU).Sregs, func(s *snapshot.VCPU) *kvm.Sregs { return &s.Sregs }),
		set((*kvm.VCPU).SetSregs, func(s *snapshot.VCPU) *kvm.Sregs { return &s.Sregs })},
	// The timer's mode is in the LAPIC: before the TSC-deadline MSR, which is ignored in another mode.
	{"lapic", getPointer((*kvm.VCPU).LAPIC, func(s *snapshot.VCPU) *kvm.LAPIC { return &s.LAPIC }),
		set((*kvm.VCPU).SetLAPIC, func(s *snapshot.VCPU) *kvm.LAPIC { return &s.LAPIC })},
	{"msrs", getMSRs, setMSRs},
	{"debug registers", get((*kvm.VCPU).DebugRegs, func(s *snapshot.VCPU) *kvm.DebugRegs { return &s.DebugRegs }),
		set((*kvm.VCPU).SetDebugRegs, func(s *snapshot.VCPU) *kvm.DebugRegs { return &s.DebugRegs })},
	{"events", get((*kvm.VCPU).Events, func(s *snapshot.VCPU) *kvm.Events { return &s.Events }),
		set((*kvm.VCPU).SetEvents, func(s *snapshot.VCPU) *kvm.Events { return &s.Events })},
	// Last: a runnable vCPU must be whole.
	{"mp state", get((*kvm.VCPU).MPState, func(s *snapshot.VCPU) *kvm.MPState { return &s.MP }),
		func(v *kvm.VCPU, s *snapshot.VCPU) error { return v.SetMPState(s.MP) }},
}

func get[T any](read func(*kvm.VCPU) (T, error), field func(*snapshot.VCPU) *T) func(*kvm.VCPU, *snapshot.VCPU) error {
	return func(v *kvm.VCPU, s *snapshot.VCPU) (err error) {
		*field(s), err = read(v)
		return err
	}
}

func getPointer[T any](read func(*kvm.VCPU) (*T, error), field func(*snapshot.VCPU) *T) func(*kvm.VCPU, *snapshot.VCPU) error {
	return func(v *kvm.VCPU, s *snapshot.VCPU) error {
		p, err := read(v)
		if err == nil {
			*field(s) = *p
		}
		return err
	}
}

func set[T any](write func(*kvm.VCPU, *T) error, field func(*snapshot.VCPU) *T) func(*kvm.VCPU, *snapshot.VCPU) error {
	return func(v *kvm.VCPU, s *snapshot.VCPU) error { return write(v, field(s)) }
}

// savedMSRs are the MSRs that a guest of ours can have changed: system calls, segments, memory types, the clocks and
// paravirtual features, and the TSC. The deadline comes after the TSC, with which it is compared.
var savedMSRs = []uint32{
	0x174, 0x175, 0x176, // SYSENTER
	0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, // STAR, LSTAR, CSTAR, SFMASK
	0xc0000102, 0xc0000080, // KERNEL_GS_BASE, EFER
	0x277, 0x2ff, 0x1a0, // PAT, MTRR default type, MISC_ENABLE
	0x10,                               // TSC
	0x4b564d00, 0x4b564d01, 0x4b564d03, // kvmclock: wall clock, system time; steal time
	0x4b564d04, 0x4b564d05, // PV end of interrupt, HLT polling
	0x6e0, // TSC deadline
}

func getMSRs(v *kvm.VCPU, s *snapshot.VCPU) (err error) {
	s.MSRs, err = v.MSRs(savedMSRs)
	return err
}

// setMSRs writes the values of a snapshot, which may name no other MSR than those that we save.
func setMSRs(v *kvm.VCPU, s *snapshot.VCPU) error {
	for _, m := range s.MSRs {
		if !slices.Contains(savedMSRs, m.Index) {
			return fmt.Errorf("%w: MSR %#x is none of a snapshot's", snapshot.ErrFormat, m.Index)
		}
	}
	return v.SetMSRs(s.MSRs)
}

// saveVCPU reads the state of a parked vCPU.
func saveVCPU(v *kvm.VCPU) (*snapshot.VCPU, error) {
	s := &snapshot.VCPU{}
	for i := len(vcpuSteps) - 1; i >= 0; i-- {
		if err := vcpuSteps[i].get(v, s); err != nil {
			return nil, fmt.Errorf("save vCPU: %s: %w", vcpuSteps[i].name, err)
		}
	}
	return s, nil
}

// loadVCPU writes a state to a vCPU that has not run yet and has its CPUID.
func loadVCPU(v *kvm.VCPU, s *snapshot.VCPU) error {
	for _, step := range vcpuSteps {
		if err := step.set(v, s); err != nil {
			return fmt.Errorf("load vCPU: %s: %w", step.name, err)
		}
	}
	return nil
}
