package vmm

import (
	"encoding/json"
	"fmt"

	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// Rehearse goes once through what a wake will do, as far as an empty machine can: what is touched and built for the first
// time then need not be later, when somebody waits.
func (m *Machine) Rehearse() error {
	cfg := m.cfg
	cfg.Restore = &api.Restore{}
	b, err := json.Marshal(api.Request{Op: api.OpWake, Config: &cfg})
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	var r api.Request
	if err := json.Unmarshal(b, &r); err != nil {
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
		if s.Chips[id], err = m.vm.IRQChip(uint32(id)); err != nil {
			return fmt.Errorf("rehearse: %w", err)
		}
	}
	if b, err = snapshot.Encode(s); err != nil {
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
