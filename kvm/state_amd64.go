package kvm

import "fmt"

// Get and set pairs for the state of a vCPU. Each is one ioctl of the same name in api.rst.

// Regs reads the general-purpose registers.
func (v *VCPU) Regs() (r Regs, err error) {
	_, err = ioctlPtr("KVM_GET_REGS", v.fd, getRegs, &r)
	return r, err
}

// SetRegs writes the general-purpose registers.
func (v *VCPU) SetRegs(r *Regs) error {
	_, err := ioctlPtr("KVM_SET_REGS", v.fd, setRegs, r)
	return err
}

// Sregs reads the special registers, PDPTRs included where the kernel can (KVM_CAP_SREGS2).
func (v *VCPU) Sregs() (s Sregs, err error) {
	if v.sregs2 {
		_, err = ioctlPtr("KVM_GET_SREGS2", v.fd, getSregs2, &s)
		return s, err
	}
	_, err = ioctlPtr("KVM_GET_SREGS", v.fd, getSregs, s.legacy())
	s.Flags, s.PDPTRs = 0, [4]uint64{}
	return s, err
}

// SetSregs writes the special registers.
func (v *VCPU) SetSregs(s *Sregs) error {
	if v.sregs2 {
		_, err := ioctlPtr("KVM_SET_SREGS2", v.fd, setSregs2, s)
		return err
	}
	old := *s
	old.Flags, old.PDPTRs = 0, [4]uint64{} // where kvm_sregs has its bitmap of interrupts being delivered
	_, err := ioctlPtr("KVM_SET_SREGS", v.fd, setSregs, old.legacy())
	return err
}

// FPU reads the x87 and SSE registers.
func (v *VCPU) FPU() (f FPU, err error) {
	_, err = ioctlPtr("KVM_GET_FPU", v.fd, getFPU, &f)
	return f, err
}

// SetFPU writes the x87 and SSE registers.
func (v *VCPU) SetFPU(f *FPU) error {
	_, err := ioctlPtr("KVM_SET_FPU", v.fd, setFPU, f)
	return err
}

// XSave reads the whole extended state. It fills 4096 bytes: state enabled on demand (AMX) does not fit.
func (v *VCPU) XSave() (*XSave, error) {
	x := new(XSave)
	_, err := ioctlPtr("KVM_GET_XSAVE", v.fd, getXSave, x)
	return x, err
}

// SetXSave writes the whole extended state.
func (v *VCPU) SetXSave(x *XSave) error {
	_, err := ioctlPtr("KVM_SET_XSAVE", v.fd, setXSave, x)
	return err
}

// XCRs reads the extended control registers. Without XSAVE there are none.
func (v *VCPU) XCRs() (x XCRs, err error) {
	if !v.xcrs {
		return x, nil
	}
	_, err = ioctlPtr("KVM_GET_XCRS", v.fd, getXCRs, &x)
	return x, err
}

// SetXCRs writes the extended control registers. Without XSAVE there are none to write.
func (v *VCPU) SetXCRs(x *XCRs) error {
	if !v.xcrs && x.Count == 0 {
		return nil
	}
	_, err := ioctlPtr("KVM_SET_XCRS", v.fd, setXCRs, x)
	return err
}

// DebugRegs reads the debug registers.
func (v *VCPU) DebugRegs() (d DebugRegs, err error) {
	_, err = ioctlPtr("KVM_GET_DEBUGREGS", v.fd, getDebugRegs, &d)
	return d, err
}

// SetDebugRegs writes the debug registers.
func (v *VCPU) SetDebugRegs(d *DebugRegs) error {
	_, err := ioctlPtr("KVM_SET_DEBUGREGS", v.fd, setDebugRegs, d)
	return err
}

// LAPIC reads the local APIC's register page.
func (v *VCPU) LAPIC() (*LAPIC, error) {
	l := new(LAPIC)
	_, err := ioctlPtr("KVM_GET_LAPIC", v.fd, getLAPIC, l)
	return l, err
}

// SetLAPIC writes the local APIC's register page.
func (v *VCPU) SetLAPIC(l *LAPIC) error {
	_, err := ioctlPtr("KVM_SET_LAPIC", v.fd, setLAPIC, l)
	return err
}

// MPState reads whether the vCPU runs, is halted or waits for its start-up IPI.
func (v *VCPU) MPState() (m MPState, err error) {
	_, err = ioctlPtr("KVM_GET_MP_STATE", v.fd, getMPState, &m)
	return m, err
}

// SetMPState writes whether the vCPU runs, is halted or waits for its start-up IPI.
func (v *VCPU) SetMPState(m MPState) error {
	_, err := ioctlPtr("KVM_SET_MP_STATE", v.fd, setMPState, &m)
	return err
}

// Events reads the exceptions and interrupts in flight.
func (v *VCPU) Events() (e Events, err error) {
	_, err = ioctlPtr("KVM_GET_VCPU_EVENTS", v.fd, getEvents, &e)
	return e, err
}

// SetEvents writes the exceptions and interrupts in flight.
func (v *VCPU) SetEvents(e *Events) error {
	_, err := ioctlPtr("KVM_SET_VCPU_EVENTS", v.fd, setEvents, e)
	return err
}

// MSRs reads the MSRs with the given indices, at most 256. One that cannot be read is an error that names it.
func (v *VCPU) MSRs(indices []uint32) ([]MSR, error) {
	if len(indices) > maxMSRs {
		return nil, fmt.Errorf("read %d MSRs: at most %d at a time", len(indices), maxMSRs)
	}
	t := &msrTable{count: uint32(len(indices))}
	for i, x := range indices {
		t.entries[i].Index = x
	}
	n, err := ioctlPtr("KVM_GET_MSRS", v.fd, getMSRs, t)
	if err != nil {
		return nil, err
	}
	if n < len(indices) {
		return nil, fmt.Errorf("KVM_GET_MSRS: MSR %#x refused", indices[n])
	}
	return t.entries[:n], nil
}

// SetMSRs writes MSRs, at most 256, in order. One that is refused is an error that names it.
func (v *VCPU) SetMSRs(msrs []MSR) error {
	if len(msrs) > maxMSRs {
		return fmt.Errorf("write %d MSRs: at most %d at a time", len(msrs), maxMSRs)
	}
	t := &msrTable{count: uint32(len(msrs))}
	copy(t.entries[:], msrs)
	n, err := ioctlPtr("KVM_SET_MSRS", v.fd, setMSRs, t)
	if err != nil {
		return err
	}
	if n < len(msrs) {
		return fmt.Errorf("KVM_SET_MSRS: MSR %#x refused", msrs[n].Index)
	}
	return nil
}

// SetCPUID sets what the guest's CPUID instruction returns, at most 256 entries. Call it before the first Run.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUID {
		return fmt.Errorf("set %d CPUID entries: at most %d", len(entries), maxCPUID)
	}
	t := &cpuidTable{count: uint32(len(entries))}
	copy(t.entries[:], entries)
	_, err := ioctlPtr("KVM_SET_CPUID2", v.fd, setCPUID, t)
	return err
}

// TSCKHz returns the frequency of the guest's TSC in kHz.
func (v *VCPU) TSCKHz() (uint32, error) {
	n, err := ioctl("KVM_GET_TSC_KHZ", v.fd, getTSCKHz, 0)
	return uint32(n), err
}

// SetTSCKHz asks for a frequency of the guest's TSC in kHz; it fails where the processor cannot scale.
func (v *VCPU) SetTSCKHz(khz uint32) error {
	_, err := ioctl("KVM_SET_TSC_KHZ", v.fd, setTSCKHz, uintptr(khz))
	return err
}

// NotePause tells the guest's kvmclock that the vCPU was stopped, so that its watchdogs forgive the gap
// (KVM_KVMCLOCK_CTRL). It fails with EINVAL for a guest without kvmclock.
func (v *VCPU) NotePause() error {
	_, err := ioctl("KVM_KVMCLOCK_CTRL", v.fd, clockCtrl, 0)
	return err
}
