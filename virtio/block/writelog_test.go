package block

import (
	"slices"
	"sync"
	"testing"

	"spore/virtio/block/blocktest"
)

func TestWriteLog(t *testing.T) {
	const size = 5*minChunk + 512
	l := NewWriteLog(&blocktest.Disk{Data: make([]byte, size)})
	write := func(off int64, n int) {
		t.Helper()
		if _, err := l.WriteAt([][]byte{make([]byte, n/2), make([]byte, n-n/2)}, off); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Take(); got != nil {
		t.Errorf("a new log has %v", got)
	}
	write(10, 1)
	write(2*minChunk-1, 2) // over an edge
	if err := l.Discard(4*minChunk, 512); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteZeroes(size-512, 512, true); err != nil {
		t.Fatal(err)
	}
	want := []Extent{{0, 3 * minChunk}, {4 * minChunk, minChunk + 512}}
	if got := l.Take(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := l.Take(); got != nil {
		t.Errorf("taken twice: %v", got)
	}
	if _, err := l.ReadAt([][]byte{make([]byte, 512)}, 0, false); err != nil || l.Take() != nil {
		t.Error("a read was noted")
	}
}

// A failed write may have written.
func TestWriteLogOfFailures(t *testing.T) {
	d := &blocktest.Disk{Data: make([]byte, minChunk)}
	d.Before = func(blocktest.Op, int64, int64, bool) error { return ErrAgain }
	l := NewWriteLog(d)
	if _, err := l.WriteAt([][]byte{make([]byte, 512)}, 0); err == nil || len(l.Take()) != 1 {
		t.Errorf("a write that failed (%v) was not noted", err)
	}
}

func TestWriteLogIsBounded(t *testing.T) {
	l := NewWriteLog(sized(1 << 44))
	if len(l.chunks) > maxChunks/64+1 {
		t.Errorf("%d words", len(l.chunks))
	}
	l.note(1<<44-1, 1)
	if got := l.Take(); len(got) != 1 || got[0].Offset+got[0].Length != 1<<44 {
		t.Errorf("%v", got)
	}
}

type sized int64

func (s sized) ReadAt([][]byte, int64, bool) (int, error) { return 0, nil }
func (s sized) WriteAt([][]byte, int64) (int, error)      { return 0, nil }
func (s sized) Flush() error                              { return nil }
func (s sized) Discard(int64, int64) error                { return nil }
func (s sized) WriteZeroes(int64, int64, bool) error      { return nil }
func (s sized) Size() int64                               { return int64(s) }

func TestWriteLogByMany(t *testing.T) {
	const each = 100
	l := NewWriteLog(sized(4 * each * minChunk))
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum := int64(0)
	for i := range 4 {
		wg.Go(func() {
			for c := range each {
				l.WriteAt([][]byte{{1}}, int64(c*4+i)*minChunk)
				if c%10 == i {
					for _, e := range l.Take() {
						mu.Lock()
						sum += e.Length
						mu.Unlock()
					}
				}
			}
		})
	}
	wg.Wait()
	for _, e := range l.Take() {
		sum += e.Length
	}
	if sum != 4*each*minChunk {
		t.Errorf("%d bytes noted, each once: want %d", sum, 4*each*minChunk)
	}
}
