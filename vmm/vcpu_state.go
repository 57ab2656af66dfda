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
	same func(a, b *snapshot.VCPU) bool // nil for a part that is always set
}

// vcpuSteps in the order in which they are set; each comes after what it depends on. Getting them goes the other way
// round: MP state, which settles pending INIT and SIPI, first of all, and the LAPIC before the MSRs that belong to it.
var vcpuSteps = []vcpuStep{
	part("registers", (*kvm.VCPU).Regs, (*kvm.VCPU).SetRegs, func(s *snapshot.VCPU) *kvm.Regs { return &s.Regs }),
	part("xsave", copied((*kvm.VCPU).XSave), (*kvm.VCPU).SetXSave, func(s *snapshot.VCPU) *kvm.XSave { return &s.XSave }),
	part("xcrs", (*kvm.VCPU).XCRs, (*kvm.VCPU).SetXCRs, func(s *snapshot.VCPU) *kvm.XCRs { return &s.XCRs }),
	// The APIC's base address and mode are in the special registers: before its registers and deadline.
	part("special registers", (*kvm.VCPU).Sregs, (*kvm.VCPU).SetSregs, func(s *snapshot.VCPU) *kvm.Sregs { return &s.Sregs }),
	// The timer's mode is in the LAPIC: before the TSC-deadline MSR, which is ignored in another mode.
	part("lapic", copied((*kvm.VCPU).LAPIC), (*kvm.VCPU).SetLAPIC, func(s *snapshot.VCPU) *kvm.LAPIC { return &s.LAPIC }),
	{"msrs", getMSRs, setMSRs, nil}, // the TSC runs
	part("debug registers", (*kvm.VCPU).DebugRegs, (*kvm.VCPU).SetDebugRegs, func(s *snapshot.VCPU) *kvm.DebugRegs { return &s.DebugRegs }),
	part("events", (*kvm.VCPU).Events, (*kvm.VCPU).SetEvents, func(s *snapshot.VCPU) *kvm.Events { return &s.Events }),
	// Last: a runnable vCPU must be whole.
	part("mp state", (*kvm.VCPU).MPState, setMPState, func(s *snapshot.VCPU) *kvm.MPState { return &s.MP }),
}

// part is the step that moves one structure of the kernel's.
func part[T comparable](name string, read func(*kvm.VCPU) (T, error), write func(*kvm.VCPU, *T) error, field func(*snapshot.VCPU) *T) vcpuStep {
	return vcpuStep{
		name: name,
		get: func(v *kvm.VCPU, s *snapshot.VCPU) (err error) {
			*field(s), err = read(v)
			return err
		},
		set:  func(v *kvm.VCPU, s *snapshot.VCPU) error { return write(v, field(s)) },
		same: func(a, b *snapshot.VCPU) bool { return *field(a) == *field(b) },
	}
}

// copied is for what is read by pointer.
func copied[T any](read func(*kvm.VCPU) (*T, error)) func(*kvm.VCPU) (T, error) {
	return func(v *kvm.VCPU) (x T, err error) {
		p, err := read(v)
		if err == nil {
			x = *p
		}
		return x, err
	}
}

func setMPState(v *kvm.VCPU, s *kvm.MPState) error { return v.SetMPState(*s) }

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

// loadVCPU writes a state to a vCPU that has not run yet and has its CPUID. Parts that are what they are in fresh, the
// vCPU's state as it is now, are left out; a nil fresh leaves nothing out.
func loadVCPU(v *kvm.VCPU, s, fresh *snapshot.VCPU) error {
	for _, step := range vcpuSteps {
		if fresh != nil && step.same != nil && step.same(s, fresh) {
			continue
		}
		if err := step.set(v, s); err != nil {
			return fmt.Errorf("load vCPU: %s: %w", step.name, err)
		}
	}
	return nil
}
