package snapshot

import (
	"encoding/binary"
	"fmt"

	"spore/kvm"
)

var magic = [8]byte{'S', 'P', 'O', 'R', 'E', 'V', 'M', '\n'}

// tag says what a section is.
type tag uint32

// The sections, in the order in which a file has them. A vCPU is the tags from tagMP to tagCPUID; there are as many as
// the machine section says.
const (
	tagMachine tag = iota + 1
	tagBlocks
	tagChip
	tagClock
	tagMP
	tagRegs
	tagXSave
	tagXCRs
	tagSregs
	tagMSRs
	tagLAPIC
	tagDebugRegs
	tagEvents
	tagCPUID
	tagDevice
	tagEnd
)

const (
	headSize    = len(magic) + 4
	sectionHead = 8
	machineSize = 8 + 4 + 4 + 4
	msrSize     = 4 + 8
)

var le = binary.LittleEndian

// Encode writes s in the current version. It fails for a State that Decode would not take back.
func Encode(s *State) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	b := le.AppendUint32(append([]byte(nil), magic[:]...), Version)
	m := le.AppendUint64(nil, uint64(s.Memory))
	m = le.AppendUint32(m, s.TSCKHz)
	m = le.AppendUint32(m, uint32(len(s.VCPUs)))
	m = le.AppendUint32(m, uint32(len(s.Devices)))
	b = section(b, tagMachine, m)
	blocks := make([]byte, 0, 8*len(s.Blocks))
	for _, w := range s.Blocks {
		blocks = le.AppendUint64(blocks, w)
	}
	b = section(b, tagBlocks, blocks)
	for i := range s.Chips {
		b = section(b, tagChip, kvm.Bytes(&s.Chips[i]))
	}
	b = section(b, tagClock, kvm.Bytes(&s.Clock))
	for i := range s.VCPUs {
		b = s.VCPUs[i].append(b)
	}
	for _, d := range s.Devices {
		p := append(le.AppendUint32(nil, uint32(len(d.Name))), d.Name...)
		b = section(b, tagDevice, append(p, d.State...))
	}
	b = section(b, tagEnd, nil)
	if len(b) > MaxSize {
		return nil, fmt.Errorf("encode machine state: %d bytes, at most %d", len(b), MaxSize)
	}
	return b, nil
}

func section(b []byte, t tag, body []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, uint32(t)), uint32(len(body)))
	return append(b, body...)
}

func (v *VCPU) append(b []byte) []byte {
	b = section(b, tagMP, kvm.Bytes(&v.MP))
	b = section(b, tagRegs, kvm.Bytes(&v.Regs))
	b = section(b, tagXSave, kvm.Bytes(&v.XSave))
	b = section(b, tagXCRs, kvm.Bytes(&v.XCRs))
	b = section(b, tagSregs, kvm.Bytes(&v.Sregs))
	msrs := make([]byte, 0, msrSize*len(v.MSRs))
	for _, m := range v.MSRs {
		msrs = le.AppendUint64(le.AppendUint32(msrs, m.Index), m.Value)
	}
	b = section(b, tagMSRs, msrs)
	b = section(b, tagLAPIC, kvm.Bytes(&v.LAPIC))
	b = section(b, tagDebugRegs, kvm.Bytes(&v.DebugRegs))
	b = section(b, tagEvents, kvm.Bytes(&v.Events))
	return section(b, tagCPUID, kvm.AppendCPUID(nil, v.CPUID))
}

// check reports the first thing in s that is out of bounds.
func (s *State) check() error {
	switch {
	case s.Memory <= 0 || s.Memory > MaxMemory || s.Memory%BlockSize != 0:
		return fmt.Errorf("%w: %d bytes of memory", ErrFormat, s.Memory)
	case len(s.Blocks) != BlockWords(s.Memory):
		return fmt.Errorf("%w: %d words for the blocks of %d bytes of memory", ErrFormat, len(s.Blocks), s.Memory)
	case len(s.VCPUs) < 1 || len(s.VCPUs) > MaxVCPUs:
		return fmt.Errorf("%w: %d vCPUs, want 1 to %d", ErrFormat, len(s.VCPUs), MaxVCPUs)
	case len(s.Devices) > MaxDevices:
		return fmt.Errorf("%w: %d devices, at most %d", ErrFormat, len(s.Devices), MaxDevices)
	}
	for i := range s.Chips {
		if s.Chips[i].ID != uint32(i) {
			return fmt.Errorf("%w: chip %d in place of %d", ErrFormat, s.Chips[i].ID, i)
		}
	}
	for i := range s.VCPUs {
		v := &s.VCPUs[i]
		if len(v.MSRs) > MaxMSRs || len(v.CPUID) > MaxCPUID {
			return fmt.Errorf("%w: vCPU %d has %d MSRs and %d CPUID leaves", ErrFormat, i, len(v.MSRs), len(v.CPUID))
		}
	}
	for _, d := range s.Devices {
		if len(d.Name) == 0 || len(d.Name) > maxName || len(d.State) > maxDevice {
			return fmt.Errorf("%w: device %.64q has a state of %d bytes", ErrFormat, d.Name, len(d.State))
		}
	}
	return nil
}
