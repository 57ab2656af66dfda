package snapshot

import (
	"bytes"
	"fmt"
	"slices"

	"spore/kvm"
)

// Decode reads what Encode wrote, of this version or an older one. It is safe on any bytes: an error, never a panic, and
// nothing is allocated by a number that is larger than what is there.
func Decode(b []byte) (*State, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFormat, len(b), MaxSize)
	}
	if len(b) < headSize || !bytes.Equal(b[:len(magic)], magic[:]) {
		return nil, fmt.Errorf("%w: it does not begin like one", ErrFormat)
	}
	if v := le.Uint32(b[len(magic):]); v < OldestVersion || v > Version {
		return nil, fmt.Errorf("%w: version %d, this build reads %d to %d", ErrFormat, v, OldestVersion, Version)
	}
	d := decoder{rest: b[headSize:]}
	s := d.state()
	if d.err == nil {
		d.err = s.check()
	}
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

// decoder takes sections off the front. After the first error it gives zeros.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
	}
}

// section returns the body of the next section, which must be t and have want bytes, or any number for a want of -1.
func (d *decoder) section(t tag, want int) []byte {
	if d.err != nil {
		return nil
	}
	if len(d.rest) < sectionHead {
		d.fail("it ends before section %d", t)
		return nil
	}
	got, n := tag(le.Uint32(d.rest)), le.Uint32(d.rest[4:])
	body := d.rest[sectionHead:]
	switch {
	case got != t:
		d.fail("section %d in place of %d", got, t)
		return nil
	case uint64(n) > uint64(len(body)):
		d.fail("section %d of %d bytes, %d are left", t, n, len(body))
		return nil
	case want >= 0 && int(n) != want:
		d.fail("section %d of %d bytes, want %d", t, n, want)
		return nil
	}
	d.rest = body[n:]
	return body[:n]
}

// fixed reads a structure of the kernel's.
func fixed[T kvm.Struct](d *decoder, t tag, into *T) {
	to := kvm.Bytes(into)
	copy(to, d.section(t, len(to)))
}

func (d *decoder) state() *State {
	s := &State{}
	m := d.section(tagMachine, machineSize)
	if d.err != nil {
		return s
	}
	s.Memory, s.TSCKHz = int64(le.Uint64(m)), le.Uint32(m[8:])
	vcpus, devices := le.Uint32(m[12:]), le.Uint32(m[16:])
	if vcpus > MaxVCPUs || devices > MaxDevices {
		d.fail("%d vCPUs and %d devices, at most %d and %d", vcpus, devices, MaxVCPUs, MaxDevices)
		return s
	}
	if s.Memory < 0 || s.Memory > MaxMemory {
		d.fail("%d bytes of memory", s.Memory)
		return s
	}
	blocks := d.section(tagBlocks, 8*BlockWords(s.Memory))
	s.Blocks = make([]uint64, len(blocks)/8)
	for i := range s.Blocks {
		s.Blocks[i] = le.Uint64(blocks[8*i:])
	}
	for i := range s.Chips {
		fixed(d, tagChip, &s.Chips[i])
	}
	fixed(d, tagClock, &s.Clock)
	s.VCPUs = make([]VCPU, vcpus)
	for i := range s.VCPUs {
		d.vcpu(&s.VCPUs[i])
	}
	for range devices {
		s.Devices = append(s.Devices, d.device())
	}
	d.section(tagEnd, 0)
	if d.err == nil && len(d.rest) > 0 {
		d.fail("%d bytes after its end", len(d.rest))
	}
	return s
}

func (d *decoder) vcpu(v *VCPU) {
	fixed(d, tagMP, &v.MP)
	fixed(d, tagRegs, &v.Regs)
	fixed(d, tagXSave, &v.XSave)
	fixed(d, tagXCRs, &v.XCRs)
	fixed(d, tagSregs, &v.Sregs)
	msrs := d.list(tagMSRs, msrSize, MaxMSRs)
	v.MSRs = make([]kvm.MSR, len(msrs)/msrSize)
	for i := range v.MSRs {
		v.MSRs[i].Index, v.MSRs[i].Value = le.Uint32(msrs[i*msrSize:]), le.Uint64(msrs[i*msrSize+4:])
	}
	fixed(d, tagLAPIC, &v.LAPIC)
	fixed(d, tagDebugRegs, &v.DebugRegs)
	fixed(d, tagEvents, &v.Events)
	if b := d.section(tagCPUID, -1); d.err == nil && len(b) > 0 {
		var err error
		if v.CPUID, err = kvm.ParseCPUID(b); err != nil {
			d.fail("%v", err)
		}
	}
}

// list is a section of whole elements, at most limit of them.
func (d *decoder) list(t tag, size, limit int) []byte {
	b := d.section(t, -1)
	if len(b)%size != 0 || len(b) > limit*size {
		d.fail("section %d of %d bytes, want at most %d elements of %d", t, len(b), limit, size)
		return nil
	}
	return b
}

func (d *decoder) device() Device {
	b := d.section(tagDevice, -1)
	if d.err != nil {
		return Device{}
	}
	if len(b) < 4 || uint64(le.Uint32(b)) > uint64(len(b)-4) || le.Uint32(b) > maxName {
		d.fail("a device without a name")
		return Device{}
	}
	n := le.Uint32(b)
	return Device{Name: string(b[4 : 4+n]), State: slices.Clone(b[4+n:])}
}
