package queue_test

import (
	"errors"
	"testing"

	"spore/virtio/queue"
)

// TestReturn gives chains back as if they had never been taken: the next queue finds them where they were.
func TestReturn(t *testing.T) {
	m := newMemory(t)
	for i := range uint16(4) {
		put(t, m, i, buffers, 16, 2, 0)
	}
	put(t, m, 3, buffers, 16, 1|2, 3) // a circle
	q, err := queue.New(m, state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, head := range []uint16{2, 9, 0, 3} { // 9 is beyond the table, and passed over
		publish(t, m, 4, uint16(n), head)
	}
	first, _ := q.Pop()
	second, _ := q.Pop()
	bad, err := q.Pop()
	if first == nil || second == nil || !errors.Is(err, queue.ErrChain) {
		t.Fatalf("popped %v, %v, %v", first, second, err)
	}
	q.Return(bad)
	if again, err := q.Pop(); again != bad || !errors.Is(err, queue.ErrChain) {
		t.Fatalf("popped %v, %v, want the one returned", again, err)
	}
	q.Return(bad)
	q.Return(second)
	q.Return(first)
	if s := q.State(); s.NextAvail != 0 || s.NextUsed != 0 || !q.Pending() {
		t.Fatalf("state %+v after all were returned", s)
	}
	for _, head := range []uint16{2, 0} {
		if c, err := q.Pop(); err != nil || c.Head != head {
			t.Fatalf("popped %+v, %v, want head %d", c, err, head)
		}
	}
}

func TestReturnOutOfOrder(t *testing.T) {
	m := newMemory(t)
	q, err := queue.New(m, state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint16(2) {
		put(t, m, i, buffers, 16, 2, 0)
		publish(t, m, 4, i, i)
	}
	first, _ := q.Pop()
	q.Pop()
	defer func() {
		if recover() == nil {
			t.Error("a chain was returned before a later one")
		}
	}()
	q.Return(first)
}

// TestStage gives back two chains that the driver sees at the same moment.
func TestStage(t *testing.T) {
	m := newMemory(t)
	q, err := queue.New(m, state(4), queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint16(2) {
		put(t, m, i, buffers, 16, 2, 0)
		publish(t, m, 4, i, i)
	}
	used := func() uint16 {
		v, err := m.LoadUint16(usedRing + 2)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for range 2 {
		c, err := q.Pop()
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Stage(c.Head, 16); err != nil || used() != 0 {
			t.Fatalf("%v, the driver sees %d used", err, used())
		}
	}
	if q.Publish(); used() != 2 || !q.NeedsInterrupt() {
		t.Errorf("the driver sees %d used, want 2 and an interrupt", used())
	}
	if err := q.Stage(0, 0); !errors.Is(err, queue.ErrRing) {
		t.Errorf("staged what is not in flight: %v", err)
	}
}
