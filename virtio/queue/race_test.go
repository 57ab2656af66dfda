package queue_test

import (
	"errors"
	"math/rand"
	"sync"
	"testing"

	"spore/guestmem"
	"spore/virtio/queue"
)

// TestQ10 lets another vCPU change descriptors while the device walks them. Each is read once as two words, so a
// chain is of words that were there, judged together: nothing else comes out, and no access faults.
func TestQ10(t *testing.T) {
	const size, rounds = 4, 50_000
	m := newMemory(t)
	q, err := queue.New(m, state(size), queue.Features{Indirect: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The short buffer fits at either address, the long one only at the first. The table is of one descriptor.
	const table = buffers + 0x8000
	le := func(n uint32, flags, next uint16) uint64 { return uint64(n) | uint64(flags)<<32 | uint64(next)<<48 }
	addrs := []uint64{buffers, memSize - 16, table, memSize, ^uint64(0)}
	words := []uint64{le(16, 2, 0), le(4096, 2, 0), le(16, 1, 1), le(16, 4, 0), le(0xffffffff, 0, 0), le(16, 1, 0xffff)}
	m.StoreUint64(table, buffers)
	m.StoreUint64(table+8, words[0])

	stop := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		r := rand.New(rand.NewSource(1))
		for {
			select {
			case <-stop:
				return
			default:
			}
			for i := range guestmem.GPA(size) {
				m.StoreUint64(descTable+16*i, addrs[r.Intn(len(addrs))])
				m.StoreUint64(descTable+16*i+8, words[r.Intn(len(words))])
			}
		}
	})
	defer func() { close(stop); other.Wait() }()
	fill := make([]byte, 2*4096)
	for n := range uint16(rounds) {
		publish(t, m, size, n, n%size)
		c, err := q.Pop()
		if c == nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if err != nil && !errors.Is(err, queue.ErrChain) {
			t.Fatal(err)
		}
		if len(c.Readable)+len(c.Writable) > size {
			t.Fatalf("%d buffers from a queue of %d", len(c.Readable)+len(c.Writable), size)
		}
		for _, b := range append(c.Readable, c.Writable...) {
			if len(b) != 16 && len(b) != 4096 {
				t.Fatalf("a buffer of %d bytes", len(b))
			}
		}
		c.Write(fill)
		if err := q.Push(c.Head, uint32(c.WritableLen())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestQ02 passes over an available entry that names no descriptor, and serves what comes after it.
func TestQ02(t *testing.T) {
	m := newMemory(t)
	q, err := queue.New(m, state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, 3, buffers, 16, 2, 0)
	for n, head := range []uint16{4, 0xffff, 3} {
		publish(t, m, 4, uint16(n), head)
	}
	if c, err := q.Pop(); err != nil || c == nil || c.Head != 3 {
		t.Errorf("pop: %v, %v", c, err)
	}
}

// TestQ07 refuses a head that is in flight.
func TestQ07(t *testing.T) {
	m := newMemory(t)
	q, err := queue.New(m, state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, 0, buffers, 16, 2, 0)
	publish(t, m, 4, 0, 0)
	publish(t, m, 4, 1, 0)
	if c, err := q.Pop(); err != nil || c == nil {
		t.Fatalf("pop: %v, %v", c, err)
	}
	if c, err := q.Pop(); c != nil || !errors.Is(err, queue.ErrRing) {
		t.Errorf("the same head again: %v, %v", c, err)
	}
}

// TestQ06 checks every distance of the available index.
func TestQ06(t *testing.T) {
	const size = 8
	m := newMemory(t)
	for _, start := range []uint16{0, 5, 0xfffc} {
		for distance := range 1 << 16 {
			if distance > 2*size && distance < 1<<16-2*size && distance%4099 != 0 {
				continue
			}
			s := state(size)
			s.NextAvail, s.NextUsed = start, start
			q, err := queue.New(m, s, queue.Features{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint16(size) {
				put(t, m, i, buffers, 16, 2, 0)
				m.StoreUint16(availRing+4+2*guestmem.GPA(i), i)
			}
			m.StoreUint16(availRing+2, start+uint16(distance))
			got := 0
			c, err := q.Pop()
			for ; c != nil && err == nil; c, err = q.Pop() {
				got++
			}
			if legal := distance <= size; legal && (err != nil || got != distance) || !legal && (got != 0 || !errors.Is(err, queue.ErrRing)) {
				t.Errorf("Q-06: index %#x, then %d further: %d chains, %v", start, distance, got, err)
			}
		}
	}
}
