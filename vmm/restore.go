package vmm

import (
	"errors"
	"fmt"
	"io"

	"spore/kvm"
	"spore/vmm/api"
	"spore/vmm/boot"
	"spore/vmm/snapshot"
)

// ErrHost is matched by the error of a snapshot that this host cannot continue: another processor, another clock, a KVM
// that lacks something. The snapshot itself is sound.
var ErrHost = errors.New("this host cannot continue the snapshot")

// readState reads the state file and looks whether it is of a machine like this one.
func (m *Machine) readState(env Env) error {
	memory, err := env.Files[m.cfg.Restore.Memory].Stat()
	if err != nil {
		return fmt.Errorf("look at memory file: %w", err)
	}
	if !memory.Mode().IsRegular() || memory.Size() != m.cfg.Memory {
		return fmt.Errorf("%w: memory file of %d bytes for %d of memory", ErrConfig, memory.Size(), m.cfg.Memory)
	}
	file := env.Files[m.cfg.Restore.State]
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at machine state: %w", err)
	}
	raw := make([]byte, min(st.Size(), snapshot.MaxSize+1))
	if _, err := file.ReadAt(raw, 0); err != nil && err != io.EOF {
		return fmt.Errorf("read machine state: %w", err)
	}
	s, err := snapshot.Decode(raw)
	if err != nil {
		return err
	}
	switch {
	case s.Memory != m.cfg.Memory:
		return fmt.Errorf("%w: the snapshot is of %d bytes of memory, this is %d", ErrConfig, s.Memory, m.cfg.Memory)
	case len(s.VCPUs) != m.cfg.VCPUs:
		return fmt.Errorf("%w: the snapshot is of %d vCPUs, this is %d", ErrConfig, len(s.VCPUs), m.cfg.VCPUs)
	}
	for id := range s.VCPUs {
		if err := m.checkCPUID(id, s); err != nil {
			return err
		}
	}
	m.saved, m.filled, m.base = s, s.Blocks, env.Files[m.cfg.Restore.Memory]
	if hot := m.cfg.Restore.Hot; hot > api.KVMFile {
		defer env.Files[hot].Close()
		if m.copied, err = m.ram.readHot(env.Files[hot], m.cfg.Memory); err != nil {
			return err
		}
	}
	if err := m.ram.fill(m.base, m.filled); err != nil {
		return err
	}
	m.ram.heat(m.copied)
	return nil
}

// clockTolerance is how far the frequencies of two hosts' clocks may be apart, in parts per million: what the guest's
// time may run wrong by. NTP corrects 500.
const clockTolerance = 250

// checkCPUID looks whether this host shows vCPU id the same that it was shown when it was saved. Only the frequencies may
// differ a little, for they are measured anew at every start of a host; then the guest is shown the old ones.
func (m *Machine) checkCPUID(id int, s *snapshot.State) error {
	here, there := m.cpus[id].cpuid, s.VCPUs[id].CPUID
	limit := int64(m.tscKHz) * clockTolerance / 1e6
	if d := int64(s.TSCKHz) - int64(m.tscKHz); d < -limit || d > limit {
		return fmt.Errorf("%w: its clock ran at %d kHz, this processor's at %d kHz", ErrHost, s.TSCKHz, m.tscKHz)
	}
	if len(here) != len(there) {
		return fmt.Errorf("%w: another processor or kernel: %d CPUID leaves, here %d", ErrHost, len(there), len(here))
	}
	same := true
	for i := range here {
		if here[i] == there[i] {
			continue
		}
		if here[i].Function != there[i].Function || !boot.TellsFrequency(here[i].Function) {
			return fmt.Errorf("%w: another processor or kernel: CPUID leaf %#x.%d differs", ErrHost, here[i].Function, here[i].Index)
		}
		same = false
	}
	if same {
		return nil
	}
	m.cpus[id].cpuid = there
	return m.cpus[id].kvm.SetCPUID(there)
}

// restore makes the new machine what the saved one was.
func (m *Machine) restore(Env) error {
	s := m.saved
	m.saved = nil // it is large
	if len(s.Devices) != len(m.devs) {
		return fmt.Errorf("%w: the snapshot has %d devices, this machine %d", ErrConfig, len(s.Devices), len(m.devs))
	}
	for i := range s.Chips {
		if err := m.vm.SetIRQChip(&s.Chips[i]); err != nil {
			return err
		}
	}
	// The flags would ask for the time that has passed to be added: the guest's clock goes on where it stood.
	if err := m.vm.SetClock(&kvm.Clock{Nanos: s.Clock.Nanos}); err != nil {
		return err
	}
	for i, c := range m.cpus {
		if err := loadVCPU(c.kvm, &s.VCPUs[i], c.fresh); err != nil {
			return fmt.Errorf("vCPU %d: %w", c.id, err)
		}
	}
	for i, d := range m.devs {
		if err := loadDevice(d, s.Devices[i]); err != nil {
			return err
		}
	}
	m.woke = true
	if m.cfg.Test {
		return nil
	}
	if err := m.newGeneration(); err != nil {
		return err
	}
	return m.pulse(eventGSI)
}

func loadDevice(d *device, saved snapshot.Device) error {
	if saved.Name != d.name {
		return fmt.Errorf("%w: the snapshot has %.64q where this machine has %s", ErrConfig, saved.Name, d.name)
	}
	st, err := decodeDevice(saved.State)
	if err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	if err := d.regs.LoadState(st); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}

// pulse raises an interrupt once, as an edge.
func (m *Machine) pulse(gsi kvm.GSI) error {
	for _, high := range []bool{true, false} {
		if err := m.vm.SetIRQ(gsi, high); err != nil {
			return err
		}
	}
	return nil
}
