package pmem

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

// patience is how long a test waits for what must happen; it is no measure of anything.
const patience = 90 * time.Second

const (
	ringAvail = 0x1000
	ringUsed  = 0x2000
	bufferAt  = 0x4000
)

func newDevice(t *testing.T) *Device {
	t.Helper()
	d, err := New(Config{Start: 1 << 32, Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{}, {Start: 1 << 21}, {Start: 1 << 21, Size: 4096}, {Start: 4096, Size: 1 << 21}, {Start: 1<<64 - 1<<21, Size: 1 << 22}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	d := newDevice(t)
	p := make([]byte, 24)
	d.WriteConfig(p, 0)
	d.ReadConfig(p, 0)
	le := binary.LittleEndian
	if le.Uint64(p) != 1<<32 || le.Uint64(p[8:]) != 4<<20 || le.Uint64(p[16:]) != 0 {
		t.Errorf("config: %x", p)
	}
	d.ReadConfig(p, 1<<31)
	if le.Uint64(p) != 0 {
		t.Errorf("far past the end: %x", p)
	}
	state, err := d.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.LoadState(state); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "{", "{}", `{"start":4294967296,"size":2097152}`} {
		if err := d.LoadState([]byte(bad)); err == nil {
			t.Errorf("loaded %q", bad)
		}
	}
}

func TestRun(t *testing.T) {
	ram, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(ram)
	mem, err := guestmem.New(guestmem.Region{Host: ram})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	describe := func(i int, at uint64, n uint32, flags uint16) {
		le.PutUint64(ram[16*i:], at)
		le.PutUint32(ram[16*i+8:], n)
		le.PutUint16(ram[16*i+12:], flags)
		le.PutUint16(ram[16*i+14:], uint16(i+1))
	}
	// Chain 0 is a flush, 2 one of an unknown type, 4 points nowhere, 6 is another flush.
	for i, kind := range []uint32{0, 9, 0, 0} {
		at := uint64(bufferAt + 16*i)
		le.PutUint32(ram[at:], kind)
		le.PutUint32(ram[at+4:], 0x55555555)
		describe(2*i, at, 4, 1)
		describe(2*i+1, at+4, 4, 2)
		le.PutUint16(ram[ringAvail+4+2*i:], uint16(2*i))
	}
	describe(5, 1<<40, 4, 2)
	le.PutUint16(ram[ringAvail+2:], 4)

	q, err := queue.New(mem, queue.State{Size: queueSize, Ready: true, Avail: ringAvail, Used: ringUsed}, queue.Features{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t)
	used := make(chan struct{}, 16)
	a := virtio.Active{Mem: mem, Queues: []*queue.Queue{q}, Used: func(int) { used <- struct{}{} }}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, a) }()
	for answered := uint16(0); answered != 4; answered, _ = mem.LoadUint16(ringUsed + 2) {
		select {
		case <-used:
		case <-time.After(patience):
			t.Fatal("no interrupt")
		}
	}
	for i, want := range []struct{ answer, n uint32 }{{0, 4}, {0xffffffff, 4}, {0x55555555, 0}, {0, 4}} {
		if got := le.Uint32(ram[bufferAt+16*i+4:]); got != want.answer {
			t.Errorf("chain %d: answer %#x, want %#x", i, got, want.answer)
		}
		if head, n := le.Uint32(ram[ringUsed+4+8*i:]), le.Uint32(ram[ringUsed+8+8*i:]); head != uint32(2*i) || n != want.n {
			t.Errorf("place %d: head %d, %d bytes", i, head, n)
		}
	}
	if c := d.Counters(); c["flushes"] != 2 || c["malformed"] != 2 {
		t.Errorf("%v", c)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A broken ring is an error, no queue is none.
	if err := mem.StoreUint16(ringAvail+2, 4+queueSize+1); err != nil {
		t.Fatal(err)
	}
	if q, err = queue.New(mem, q.State(), queue.Features{}, nil); err != nil {
		t.Fatal(err)
	}
	a.Queues[0] = q
	if err := d.Run(context.Background(), a); !errors.Is(err, queue.ErrRing) {
		t.Errorf("broken ring: %v", err)
	}
	a.Queues[0] = nil
	if err := d.Run(ctx, a); err != nil {
		t.Errorf("no queue: %v", err)
	}
}
