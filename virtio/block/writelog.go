package block

import (
	"math/bits"
	"sync/atomic"
)

// Extent is a stretch of a disk, in bytes.
type Extent struct{ Offset, Length int64 }

// A WriteLog notes in chunks what is written. A chunk is 64 KiB, or larger for a disk that would have more than maxChunks.
const (
	minChunk  = 64 << 10
	maxChunks = 1 << 18
)

// WriteLog is a Backend that notes which parts of another may have changed: for who copies a disk that is in use, and then copies
// again what was written meanwhile. Like the Backend it is over, any goroutine may use it.
type WriteLog struct {
	Backend
	shift  uint            // of a chunk's size
	chunks []atomic.Uint64 // one bit for each
}

// NewWriteLog makes one that has noted nothing yet.
func NewWriteLog(b Backend) *WriteLog {
	l := &WriteLog{Backend: b, shift: uint(bits.TrailingZeros(minChunk))}
	for b.Size()>>l.shift >= maxChunks {
		l.shift++
	}
	l.chunks = make([]atomic.Uint64, b.Size()>>l.shift/64+1)
	return l
}

// WriteAt implements Backend.
func (l *WriteLog) WriteAt(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	defer l.note(off, int64(n)) // after the write, and whatever came of it: see Take
	return l.Backend.WriteAt(bufs, off)
}

// Discard implements Backend.
func (l *WriteLog) Discard(off, n int64) error {
	defer l.note(off, n)
	return l.Backend.Discard(off, n)
}

// WriteZeroes implements Backend.
func (l *WriteLog) WriteZeroes(off, n int64, unmap bool) error {
	defer l.note(off, n)
	return l.Backend.WriteZeroes(off, n, unmap)
}

func (l *WriteLog) note(off, n int64) {
	if n <= 0 {
		return
	}
	for c := off >> l.shift; c <= (off+n-1)>>l.shift; c++ {
		word, bit := &l.chunks[c/64], uint64(1)<<(c%64)
		if word.Load()&bit == 0 {
			word.Or(bit)
		}
	}
}

// Take returns what was written since it was called last, in order, neighbours together, and forgets it. Whoever copies that
// after Take returned misses nothing that had been completed when Take was called; what is still on its way is in the next.
func (l *WriteLog) Take() (list []Extent) {
	for w := range l.chunks {
		if l.chunks[w].Load() == 0 {
			continue
		}
		for word := l.chunks[w].Swap(0); word != 0; word &= word - 1 {
			at := (int64(w)*64 + int64(bits.TrailingZeros64(word))) << l.shift
			n := min(int64(1)<<l.shift, l.Size()-at)
			if k := len(list) - 1; k >= 0 && list[k].Offset+list[k].Length == at {
				list[k].Length += n
			} else if n > 0 {
				list = append(list, Extent{at, n})
			}
		}
	}
	return list
}
