// Package guestmem is a guest's physical memory as the VMM sees it: regions that are mapped once and never
// change, and accessors that judge every address before they touch anything. No accessor panics, whatever
// address and length a guest made up, and none reaches a device: the package knows RAM and nothing else.
//
// The guest may write any byte at any time. Whoever decides by a value in guest memory copies it first, once,
// and decides by the copy.
package guestmem

import (
	"errors"
	"fmt"
	"sort"
	"sync/atomic"
)

// GPA is a guest physical address.
type GPA uint64

// PageSize is the unit of regions, in bytes.
const PageSize = 4096

// ErrRange says that an access is not inside guest memory.
var ErrRange = errors.New("outside guest memory")

// Region is one contiguous range of guest memory, backed by one mapping and one memory slot.
type Region struct {
	Base   GPA    // first address; page aligned
	Host   []byte // the mapping; its length is the region's size in bytes, a multiple of PageSize
	Offset int64  // where Host starts in the memory file; 0 without one
}

// end is the address after the region's last byte.
func (r Region) end() GPA { return r.Base + GPA(len(r.Host)) }

// Memory is the guest's RAM. Its regions never change after New, so it needs no lock.
type Memory struct {
	regions []Region               // sorted by Base, not overlapping
	writes  atomic.Pointer[writes] // nil unless they are noted
}

// New makes a Memory of regions in any order. It refuses regions that are empty, unaligned, overlap or wrap.
func New(regions ...Region) (*Memory, error) {
	if len(regions) == 0 {
		return nil, errors.New("make guest memory: no region")
	}
	m := &Memory{regions: append([]Region(nil), regions...)}
	sort.Slice(m.regions, func(i, j int) bool { return m.regions[i].Base < m.regions[j].Base })
	for i, r := range m.regions {
		switch {
		case len(r.Host) == 0, len(r.Host)%PageSize != 0, r.Base%PageSize != 0, r.end() < r.Base:
			return nil, fmt.Errorf("make guest memory: region at %#x of %d bytes: not whole pages", r.Base, len(r.Host))
		case i > 0 && m.regions[i-1].end() > r.Base:
			return nil, fmt.Errorf("make guest memory: regions at %#x and %#x overlap", m.regions[i-1].Base, r.Base)
		}
	}
	return m, nil
}

// Regions returns the regions by ascending address. The caller must not change the slice.
func (m *Memory) Regions() []Region { return m.regions }

// Size is the sum of the regions' sizes in bytes.
func (m *Memory) Size() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += uint64(len(r.Host))
	}
	return n
}

// find returns the bytes from a to the end of its region, nil when a is in none.
func (m *Memory) find(a GPA) []byte {
	for i := range m.regions {
		if r := &m.regions[i]; a >= r.Base && a < r.end() {
			return r.Host[a-r.Base:]
		}
	}
	return nil
}

// Slice returns the n bytes at a without copying. The guest may change them at any time. The range must lie in
// one region, a inside it even when n is 0; otherwise the error is ErrRange.
func (m *Memory) Slice(a GPA, n uint64) ([]byte, error) {
	rest := m.find(a)
	if rest == nil || n > uint64(len(rest)) {
		return nil, ErrRange
	}
	return rest[:n:n], nil
}

// ReadAt copies len(p) bytes at a into p. The range may cross from one region into an adjacent one.
func (m *Memory) ReadAt(p []byte, a GPA) error {
	if !m.contains(a, uint64(len(p))) {
		return ErrRange
	}
	for len(p) > 0 {
		n := copy(p, m.find(a))
		p, a = p[n:], a+GPA(n)
	}
	return nil
}

// WriteAt copies p to a. The range may cross from one region into an adjacent one. Nothing is written when it
// is not inside guest memory.
func (m *Memory) WriteAt(p []byte, a GPA) error {
	if !m.contains(a, uint64(len(p))) {
		return ErrRange
	}
	for len(p) > 0 {
		n := copy(m.find(a), p)
		m.Wrote(a, uint64(n))
		p, a = p[n:], a+GPA(n)
	}
	return nil
}

// contains reports whether the n bytes at a are all guest memory. It takes one step per region.
func (m *Memory) contains(a GPA, n uint64) bool {
	for n > 0 {
		rest := uint64(len(m.find(a)))
		if rest == 0 {
			return false
		}
		if rest >= n {
			return true
		}
		n, a = n-rest, a+GPA(rest)
	}
	return true
}
