package vmm

import (
	"bytes"
	"fmt"

	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// Rehearse goes once through what a wake will do, as far as an empty machine can: what is touched and built for the first
// time then need not be later, when somebody waits.
func (m *Machine) Rehearse() error {
	cfg := m.cfg
	cfg.Restore = &api.Restore{}
	var line bytes.Buffer
	if err := api.Send(&line, &api.Request{Op: api.OpWake, Config: &cfg}); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if err := api.Receive(&line, new(api.Request)); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	s := &snapshot.State{Memory: cfg.Memory, TSCKHz: m.tscKHz, Blocks: make([]uint64, snapshot.BlockWords(cfg.Memory))}
	for _, c := range m.cpus {
		v, err := saveVCPU(c.kvm)
		if err != nil {
			return fmt.Errorf("rehearse: vCPU %d: %w", c.id, err)
		}
		v.CPUID = c.cpuid
		s.VCPUs = append(s.VCPUs, *v)
	}
	for id := range s.Chips {
		chip, err := m.vm.IRQChip(uint32(id))
		if err != nil {
			return fmt.Errorf("rehearse: %w", err)
		}
		s.Chips[id] = chip
	}
	b, err := snapshot.Encode(s)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if s, err = snapshot.Decode(b); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	for i, c := range m.cpus { // back where it came from
		if err := loadVCPU(c.kvm, &s.VCPUs[i], nil); err != nil {
			return fmt.Errorf("rehearse: vCPU %d: %w", c.id, err)
		}
		if c.fresh, err = saveVCPU(c.kvm); err != nil {
			return fmt.Errorf("rehearse: vCPU %d: %w", c.id, err)
		}
	}
	return nil
}
