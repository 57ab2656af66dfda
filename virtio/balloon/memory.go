package balloon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spore/guestmem"
)

// Memory is the Backend over guest memory itself.
type Memory struct {
	mem    *guestmem.Memory
	advice int
}

// NewMemory makes a Backend of mem. Shared says that its mappings are MAP_SHARED of a memory file, whose pages are
// then removed from the file too (MADV_REMOVE); private pages are dropped (MADV_DONTNEED).
func NewMemory(mem *guestmem.Memory, shared bool) *Memory {
	if shared {
		return &Memory{mem, unix.MADV_REMOVE}
	}
	return &Memory{mem, unix.MADV_DONTNEED}
}

// Discard is madvise(2) on every piece of the range; a range may cross regions that touch.
func (m *Memory) Discard(a guestmem.GPA, n uint64) error {
	for n > 0 {
		piece, err := m.piece(a, n)
		if err != nil {
			return err
		}
		if err := unix.Madvise(piece, m.advice); err != nil {
			return fmt.Errorf("discard guest memory at %#x+%#x: %w", uint64(a), len(piece), err)
		}
		m.mem.Wrote(a, uint64(len(piece))) // a live snapshot may have copied what was there
		a += guestmem.GPA(len(piece))
		n -= uint64(len(piece))
	}
	return nil
}

// piece returns the memory at a, at most n bytes, inside one region.
func (m *Memory) piece(a guestmem.GPA, n uint64) ([]byte, error) {
	for _, r := range m.mem.Regions() {
		if off := uint64(a) - uint64(r.Base); a >= r.Base && off < uint64(len(r.Host)) {
			return r.Host[off:min(uint64(len(r.Host)), off+n)], nil
		}
	}
	return nil, fmt.Errorf("discard guest memory at %#x: %w", uint64(a), guestmem.ErrRange)
}
