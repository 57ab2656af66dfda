package queue_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"spore/guestmem"
	"spore/virtio/queue"
)

// Where the rings of the tests lie.
const (
	descTable = 0x1000
	availRing = 0x5000
	usedRing  = 0x9000
	buffers   = 0x10000
	memSize   = 1 << 20
)

func newMemory(t testing.TB) *guestmem.Memory {
	t.Helper()
	host, err := guestmem.MapAnon(memSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guestmem.Unmap(host) })
	m, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func state(size uint16) queue.State {
	return queue.State{Size: size, Ready: true, Desc: descTable, Avail: availRing, Used: usedRing}
}

// put writes a descriptor.
func put(t testing.TB, m *guestmem.Memory, i uint16, addr guestmem.GPA, n uint32, flags, next uint16) {
	t.Helper()
	le := binary.LittleEndian
	b := le.AppendUint16(le.AppendUint16(le.AppendUint32(le.AppendUint64(nil, uint64(addr)), n), flags), next)
	if err := m.WriteAt(b, descTable+16*guestmem.GPA(i)); err != nil {
		t.Fatal(err)
	}
}

// publish makes head the nth available entry.
func publish(t testing.TB, m *guestmem.Memory, size, n, head uint16) {
	t.Helper()
	if err := errors.Join(
		m.StoreUint16(availRing+4+2*guestmem.GPA(n%size), head),
		m.StoreUint16(availRing+2, n+1),
	); err != nil {
		t.Fatal(err)
	}
}

func TestNewRefusesImpossibleStates(t *testing.T) {
	m := newMemory(t)
	for name, spoil := range map[string]func(*queue.State){
		"size 0":                func(s *queue.State) { s.Size = 0 },
		"size 3":                func(s *queue.State) { s.Size = 3 },
		"size 2048":             func(s *queue.State) { s.Size = 2048 },
		"table outside":         func(s *queue.State) { s.Desc = memSize },
		"table at the end":      func(s *queue.State) { s.Desc = memSize - 16 },
		"table wraps":           func(s *queue.State) { s.Desc = ^guestmem.GPA(0) - 15 },
		"table unaligned":       func(s *queue.State) { s.Desc = descTable + 8 },
		"available unaligned":   func(s *queue.State) { s.Avail = availRing + 1 },
		"used unaligned":        func(s *queue.State) { s.Used = usedRing + 2 },
		"used ring outside":     func(s *queue.State) { s.Used = memSize - 8 },
		"available far outside": func(s *queue.State) { s.Avail = 1 << 60 },
	} {
		s := state(64)
		spoil(&s)
		if _, err := queue.New(m, s, queue.Features{}, nil); err == nil {
			t.Errorf("%s: made a queue", name)
		}
	}
}

func TestChainReadsAndWrites(t *testing.T) {
	m := newMemory(t)
	q, err := queue.New(m, state(8), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.WriteAt([]byte("hello world"), buffers)
	put(t, m, 0, buffers, 5, 1, 1)
	put(t, m, 1, buffers+5, 6, 1, 2)
	put(t, m, 2, buffers+0x100, 4, 3, 3)
	put(t, m, 3, buffers+0x200, 4, 2, 0)
	publish(t, m, 8, 0, 0)
	c, err := q.Pop()
	if err != nil || c == nil {
		t.Fatalf("pop: %v, %v", c, err)
	}
	if c.ReadableLen() != 11 || c.WritableLen() != 8 {
		t.Errorf("readable %d, writable %d; want 11, 8", c.ReadableLen(), c.WritableLen())
	}
	p := make([]byte, 20)
	if n := c.Read(p[:7]); n != 7 || string(p[:n]) != "hello w" {
		t.Errorf("read %d %q", n, p[:n])
	}
	if n := c.Read(p); n != 4 || string(p[:n]) != "orld" {
		t.Errorf("read %d %q", n, p[:n])
	}
	if n := c.Write([]byte("0123456789")); n != 8 {
		t.Errorf("wrote %d, want 8", n)
	}
	if err := q.Push(c.Head, 100); err != nil {
		t.Fatal(err)
	}
	if n, _ := m.LoadUint32(usedRing + 8); n != 8 {
		t.Errorf("Q-15: %d bytes reported, want 8", n)
	}
	if err := q.Push(0, 0); !errors.Is(err, queue.ErrRing) {
		t.Errorf("a chain is given back twice: %v", err)
	}
	if c, err := q.Pop(); c != nil || err != nil {
		t.Errorf("an empty queue gives %v, %v", c, err)
	}
}

// TestNeedsInterrupt checks both ways of asking for interrupts, across the wrap of the index.
func TestNeedsInterrupt(t *testing.T) {
	m := newMemory(t)
	s := state(4)
	s.NextUsed, s.NextAvail = 0xfffe, 0xfffe
	m.StoreUint16(availRing+2, 0xfffe)
	q, err := queue.New(m, s, queue.Features{EventIdx: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, 0, buffers, 16, 2, 0)
	for i, want := range []struct {
		event uint16
		need  bool
	}{{0xfffe, true}, {0xfffe, false}, {0, true}, {5, false}} {
		n := uint16(0xfffe) + uint16(i)
		m.StoreUint16(availRing+4+2*4, want.event)
		publish(t, m, 4, n, 0)
		c, err := q.Pop()
		if err != nil || c == nil {
			t.Fatalf("pop %d: %v, %v", i, c, err)
		}
		q.Push(c.Head, 0)
		if got := q.NeedsInterrupt(); got != want.need {
			t.Errorf("used index %#x, event %#x: needs interrupt %v, want %v", n, want.event, got, want.need)
		}
		if q.NeedsInterrupt() {
			t.Error("an interrupt without a push")
		}
	}
}

func TestKickSuppression(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		m := newMemory(t)
		q, err := queue.New(m, state(4), queue.Features{EventIdx: eventIdx}, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.DisableKicks()
		if q.EnableKicks() {
			t.Error("an empty queue has more")
		}
		put(t, m, 0, buffers, 16, 2, 0)
		publish(t, m, 4, 0, 0)
		if !q.EnableKicks() {
			t.Error("a chain that came in between goes unseen")
		}
		if flags, _ := m.LoadUint16(usedRing); flags != 0 {
			t.Errorf("flags %#x after EnableKicks", flags)
		}
	}
}

func TestWait(t *testing.T) {
	q, err := queue.New(newMemory(t), state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := q.Wait(ctx); err != nil {
		t.Errorf("the first wait: %v", err)
	}
	q.Kick()
	if err := q.Wait(ctx); err != nil {
		t.Errorf("wait after a kick: %v", err)
	}
	cancel()
	if err := q.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait after the end: %v", err)
	}
}

// FuzzQueue lets a hostile driver write the whole of memory. Whatever it writes, no method panics, buffers lie
// in memory, a chain has at most as many as the queue, and the used index only grows.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{}, uint16(1), true)
	f.Add([]byte("\x00\x00\x01\x00\x00\x00\x00\x00\x40\x00\x00\x00\x02\x00\x00\x00"), uint16(1), true)
	f.Add([]byte("\x00\x00\x01\x00\x00\x00\x00\x00\x40\x00\x00\x00\x04\x00\x00\x00"), uint16(3), false)
	host, err := guestmem.MapAnon(memSize)
	if err != nil {
		f.Fatal(err)
	}
	m, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, image []byte, avail uint16, features bool) {
		const size = 16
		clear(host[descTable : buffers+0x1000])
		copy(host[descTable:availRing], image)
		if len(image) > 64 {
			copy(host[buffers:buffers+0x1000], image[64:]) // indirect tables
		}
		for i := range uint16(size) {
			publish(t, m, size, i, uint16(i*5+avail)%(size+2))
		}
		m.StoreUint16(availRing+2, avail)
		q, err := queue.New(m, state(size), queue.Features{Indirect: features, EventIdx: features}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 * size {
			c, err := q.Pop()
			if c == nil {
				if err != nil && !errors.Is(err, queue.ErrRing) {
					t.Fatalf("pop: %v", err)
				}
				break
			}
			if len(c.Readable)+len(c.Writable) > size {
				t.Fatalf("%d buffers from a queue of %d", len(c.Readable)+len(c.Writable), size)
			}
			if err != nil && c.ReadableLen()+c.WritableLen() != 0 {
				t.Fatal("a malformed chain has buffers")
			}
			if c.ReadableLen()+c.WritableLen() > memSize {
				t.Fatal("a chain is larger than memory")
			}
			before := q.State().NextUsed
			if err := q.Push(c.Head, ^uint32(0)); err != nil {
				t.Fatalf("push: %v", err)
			}
			if q.State().NextUsed != before+1 {
				t.Fatal("the used index does not grow by one")
			}
		}
		q.NeedsInterrupt()
		q.EnableKicks()
	})
}

func BenchmarkPopPush(b *testing.B) {
	m := newMemory(b)
	q, err := queue.New(m, state(256), queue.Features{EventIdx: true}, nil)
	if err != nil {
		b.Fatal(err)
	}
	put(b, m, 0, buffers, 16, 1, 1)
	put(b, m, 1, buffers+64, 4096, 3, 2)
	put(b, m, 2, buffers+0x2000, 1, 2, 0)
	b.ReportAllocs()
	n := uint16(0)
	for b.Loop() {
		n++ // the one entry of the ring is always head 0
		m.StoreUint16(availRing+2, n)
		c, err := q.Pop()
		if err != nil || c == nil {
			b.Fatal(c, err)
		}
		q.Push(c.Head, 4097)
		q.NeedsInterrupt()
	}
}
