package vmm

import "fmt"

// Stats returns the machine's counters: what each vCPU exited for, accesses that nobody answered, and each
// device's own counts.
func (m *Machine) Stats() map[string]map[string]uint64 {
	out := map[string]map[string]uint64{
		"bus": {"memory_unclaimed": m.mmio.unclaimed.Load(), "port_unclaimed": m.ports.unclaimed.Load()},
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.cpus {
		out[fmt.Sprintf("vcpu%d", c.id)] = c.counters()
	}
	for _, d := range m.devs {
		if d.counters != nil {
			out[d.name] = d.counters()
		}
	}
	return out
}
