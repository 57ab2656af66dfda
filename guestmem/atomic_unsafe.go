package guestmem

import (
	"sync/atomic"
	"unsafe"
)

// The words below are little endian, as the guest's. Loads acquire and stores release; on amd64 a store of
// sync/atomic is an XCHG and so a full fence. An address that is not aligned to the word is ErrRange.

// word returns the aligned n bytes at a.
func (m *Memory) word(a GPA, n uint64) (unsafe.Pointer, error) {
	b, err := m.Slice(a, n)
	if err != nil || uint64(a)%n != 0 {
		return nil, ErrRange
	}
	// SAFETY: b has n bytes, regions are page aligned in the guest and in the host, so a's alignment is the
	// pointer's; the mapping outlives the Memory.
	return unsafe.Pointer(unsafe.SliceData(b)), nil
}

// LoadUint16 reads the word at a, 2-byte aligned. sync/atomic has no 16-bit load, so the aligned 32-bit word
// around it is loaded.
func (m *Memory) LoadUint16(a GPA) (uint16, error) {
	if a%2 != 0 {
		return 0, ErrRange
	}
	v, err := m.LoadUint32(a &^ 2)
	return uint16(v >> (8 * (a & 2))), err
}

// LoadUint32 reads the word at a, 4-byte aligned.
func (m *Memory) LoadUint32(a GPA) (uint32, error) {
	p, err := m.word(a, 4)
	if err != nil {
		return 0, err
	}
	return atomic.LoadUint32((*uint32)(p)), nil
}

// LoadUint64 reads the word at a, 8-byte aligned.
func (m *Memory) LoadUint64(a GPA) (uint64, error) {
	p, err := m.word(a, 8)
	if err != nil {
		return 0, err
	}
	return atomic.LoadUint64((*uint64)(p)), nil
}

// StoreUint16 writes the word at a, 2-byte aligned, without disturbing its neighbour in the same 32-bit word:
// the exchange is repeated while that one changes, which the guest can do a bounded number of times only by
// racing; after storeTries the word is written as it stands.
func (m *Memory) StoreUint16(a GPA, v uint16) error {
	if a%2 != 0 {
		return ErrRange
	}
	p, err := m.word(a&^2, 4)
	if err != nil {
		return err
	}
	word, shift := (*uint32)(p), 8*(a&2)
	for range storeTries {
		old := atomic.LoadUint32(word)
		if atomic.CompareAndSwapUint32(word, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			m.Wrote(a, 2)
			return nil
		}
	}
	*(*uint16)(unsafe.Add(p, a&2)) = v
	m.Wrote(a, 2)
	return nil
}

const storeTries = 64

// StoreUint32 writes the word at a, 4-byte aligned.
func (m *Memory) StoreUint32(a GPA, v uint32) error {
	p, err := m.word(a, 4)
	if err != nil {
		return err
	}
	atomic.StoreUint32((*uint32)(p), v)
	m.Wrote(a, 4)
	return nil
}

// StoreUint64 writes the word at a, 8-byte aligned.
func (m *Memory) StoreUint64(a GPA, v uint64) error {
	p, err := m.word(a, 8)
	if err != nil {
		return err
	}
	atomic.StoreUint64((*uint64)(p), v)
	m.Wrote(a, 8)
	return nil
}
