package guestmem

import "sync/atomic"

// writes notes which pages this process wrote. KVM's dirty log knows only what the guest wrote itself.
type writes struct {
	pages [][]atomic.Uint64 // by region, one bit for each page
}

// LogWrites begins to note which pages are written through m, while others use m. A write that has been made may still be noted.
func (m *Memory) LogWrites() {
	w := &writes{}
	for _, r := range m.regions {
		w.pages = append(w.pages, make([]atomic.Uint64, Words(len(r.Host))))
	}
	m.writes.Store(w)
}

// EndWrites ends that, and forgets what was noted.
func (m *Memory) EndWrites() { m.writes.Store(nil) }

// Words is how many 64-bit words hold one bit for each page of n bytes.
func Words(n int) int { return (n/PageSize + 63) / 64 }

// Wrote notes that the n bytes at a were written, by whoever got them from Slice. Note a write after it was made: a
// reader of the log then copies the page again. Without a log it does nothing, nor for what is outside memory.
func (m *Memory) Wrote(a GPA, n uint64) {
	w := m.writes.Load()
	if w == nil || n == 0 {
		return
	}
	for i := range m.regions {
		r := &m.regions[i]
		if a < r.Base || a >= r.end() {
			continue
		}
		first := uint64(a-r.Base) / PageSize
		last := min(uint64(a-r.Base)+n-1, uint64(len(r.Host))-1) / PageSize
		for p := first; p <= last; p++ {
			word, bit := &w.pages[i][p/64], uint64(1)<<(p%64)
			if word.Load()&bit == 0 {
				word.Or(bit)
			}
		}
		if rest := uint64(a-r.Base) + n - min(uint64(a-r.Base)+n, uint64(len(r.Host))); rest > 0 {
			m.Wrote(r.end(), rest) // into an adjacent region; there are few
		}
		return
	}
}

// TakeWrites adds the pages of region i that were written since the last call to into, one bit for each page, and
// forgets them. into has Words of the region's size. Without a log it does nothing.
func (m *Memory) TakeWrites(i int, into []uint64) {
	log := m.writes.Load()
	if log == nil {
		return
	}
	pages := log.pages[i]
	for w := range pages {
		if pages[w].Load() != 0 {
			into[w] |= pages[w].Swap(0)
		}
	}
}
