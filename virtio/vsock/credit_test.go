package vsock

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// VS-03: whatever the guest says of its buffer, what may be sent is never negative and never more than it said.
func TestVS03SendCredit(t *testing.T) {
	const top = 0xffff_ffff
	tests := []struct {
		name     string
		c        sendCredit
		say      credit
		believed bool
		free     uint32
	}{
		{"first", sendCredit{}, credit{1000, 0}, true, 1000},
		{"nothing", sendCredit{}, credit{0, 0}, true, 0},
		{"everything", sendCredit{}, credit{top, 0}, true, top},
		{"some taken", sendCredit{sent: 600, acked: 0}, credit{1000, 100}, true, 500},
		{"all taken", sendCredit{sent: 600}, credit{1000, 600}, true, 1000},
		{"ahead of what was sent", sendCredit{sent: 600}, credit{1000, 601}, false, 400},
		{"far ahead", sendCredit{sent: 600}, credit{1000, top}, false, 400},
		{"behind the last", sendCredit{sent: 600, acked: 500}, credit{1000, 400}, false, 900},
		{"shrunk below what is under way", sendCredit{sent: 600}, credit{100, 0}, true, 0},
		{"shrunk to what is under way", sendCredit{sent: 600}, credit{600, 0}, true, 0},
		{"shrunk to nothing", sendCredit{sent: 600}, credit{0, 0}, true, 0},
		{"count wraps", sendCredit{sent: 50, acked: top - 49}, credit{1000, 10}, true, 960},
		{"count is about to wrap", sendCredit{sent: 50, acked: top - 49}, credit{1000, top}, true, 949},
		{"ahead across the wrap", sendCredit{sent: 50, acked: top - 49}, credit{1000, 51}, false, 900},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.c
			if got := c.update(tt.say); got != tt.believed {
				t.Errorf("believed %v, want %v", got, tt.believed)
			}
			if got := c.free(); got != tt.free {
				t.Errorf("free %d, want %d", got, tt.free)
			}
		})
	}
}

// VS-03: the guest cannot send more than it was allowed, and the count survives its wrap.
func TestVS03ReceiveCredit(t *testing.T) {
	c := receiveCredit{size: 1000, received: 0xffff_ff00, forwarded: 0xffff_ff00, told: 0xffff_ff00}
	if c.admit(1001) {
		t.Fatal("more than the buffer was admitted")
	}
	if !c.admit(1000) || c.admit(1) {
		t.Fatal("exactly the buffer was not admitted, or more was")
	}
	if c.held() != 1000 {
		t.Fatalf("held %d, want 1000", c.held())
	}
	c.forward(499)
	if c.due() {
		t.Error("an update is due before half the buffer is free")
	}
	c.forward(1)
	if !c.due() {
		t.Error("no update is due with half the buffer free")
	}
	forwarded := uint32(0xffff_ff00) // and around
	forwarded += 500
	if got := c.tell(); got.bufAlloc != 1000 || got.fwdCnt != forwarded {
		t.Errorf("told %+v", got)
	}
	if c.due() {
		t.Error("an update is due just after one")
	}
	if !c.admit(500) || c.admit(1) {
		t.Error("the room that became free is not what may be sent")
	}
}

// VS-04: the buffer holds what it is given in order and within its limit, and gives its memory back once it is not needed.
func TestVS04Buffer(t *testing.T) {
	const limit = 10_000
	rng := rand.New(rand.NewPCG(1, 2))
	b := buffer{limit: limit}
	var want []byte
	next := byte(0)
	for range 20_000 {
		if rng.IntN(2) == 0 {
			var pieces [][]byte
			for n := rng.IntN(min(limit-b.len(), 3000) + 1); n > 0; {
				p := make([]byte, 1+rng.IntN(n))
				for i := range p {
					p[i] = next
					next++
				}
				n -= len(p)
				pieces = append(pieces, p)
				want = append(want, p...)
			}
			b.append(pieces)
		} else if b.len() > 0 {
			n := 1 + rng.IntN(b.len())
			b.discard(n)
			want = want[n:]
		}
		if got := bytes.Join(b.view(nil), nil); !bytes.Equal(got, want) {
			t.Fatalf("holds %d bytes, want %d, or others", len(got), len(want))
		}
		if len(b.ring) > limit {
			t.Fatalf("ring of %d for %d bytes", len(b.ring), b.len())
		}
	}
	b.discard(b.len())
	for range maxUnused + 1 {
		b.skip()
	}
	if b.ring != nil {
		t.Error("a ring that is not needed keeps its memory")
	}
}

func TestBufferBeyondItsLimitIsABug(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	b := buffer{limit: 3}
	b.append([][]byte{{1, 2}, {3, 4}})
}
