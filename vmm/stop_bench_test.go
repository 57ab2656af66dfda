package vmm

import (
	"encoding/binary"
	"slices"
	"testing"
)

// BenchmarkStop reports how long a guest that runs without a pause stands still for a live snapshot, and what for, in µs (medians).
func BenchmarkStop(b *testing.B) {
	m, p := newTestMachine(b, staircase(), nil)
	if err := m.Resume(b.Context()); err != nil {
		b.Fatal(err)
	}
	await(b, p)
	from, _ := save(b, m, nil, false)
	m, _ = wake(b, from, nil)
	if err := m.Resume(b.Context()); err != nil {
		b.Fatal(err)
	}
	var stopped []int64
	steps := map[string][]int64{}
	state, memory := memFile(b, "state"), memFile(b, "memory")
	turn := func() (word uint32) {
		raw := make([]byte, 4)
		if err := m.ram.mem.ReadAt(raw, stairsAt); err != nil {
			b.Fatal(err)
		}
		return binary.LittleEndian.Uint32(raw)
	}
	for b.Loop() {
		for last := turn(); turn() == last; { // it runs
		}
		saved, err := m.Save(b.Context(), state, memory, pagemap(b), true, true)
		if err != nil {
			b.Fatal(err)
		}
		stopped = append(stopped, saved.Stopped)
		for _, s := range saved.Steps {
			steps[s.Name] = append(steps[s.Name], s.Nanos)
		}
	}
	median := func(list []int64) float64 { slices.Sort(list); return float64(list[len(list)/2]) / 1e3 }
	b.ReportMetric(median(stopped), "stopped-µs")
	for name, list := range steps {
		b.ReportMetric(median(list), name+"-µs")
	}
}
