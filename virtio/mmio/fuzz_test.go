package mmio_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand"
	"testing"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/mmio"
	"spore/virtio/rng"
)

// FuzzMMIO plays sequences of register accesses of every width, as a hostile driver would. No access panics or
// hangs, and the status register only ever shows a legal state.
func FuzzMMIO(f *testing.F) {
	access := func(off uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(nil, off), v)
	}
	var good []byte
	for _, a := range [][2]uint32{{0x70, 1}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x70, 11}, {0x30, 0}, {0x38, 8}, {0x80, 0x1000}, {0x90, 0x2000}, {0xa0, 0x3000}, {0x44, 1}, {0x70, 15}, {0x50, 0}, {0x70, 0}} {
		good = append(good, access(uint16(a[0]), a[1])...)
	}
	f.Add(good)
	f.Add(access(0x50, 0xffffffff))
	host, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, moves []byte) {
		bus := mmio.New(mmio.Config{Device: rng.New(rand.New(rand.NewSource(1))), Mem: mem, Interrupt: func() {}})
		for ; len(moves) >= 6; moves = moves[6:] {
			off := uint64(binary.LittleEndian.Uint16(moves))
			width := 4
			if off&0x8000 != 0 {
				width = 1 << (off >> 12 & 3)
			}
			off &= 0xfff
			bus.Write(off, append(moves[2:6:6], 0, 0, 0, 0)[:width])
			var b [8]byte
			bus.Read(off, b[:width])
			bus.Read(0x70, b[:4])
			switch status := binary.LittleEndian.Uint32(b[:]) &^ (virtio.StatusNeedsReset | virtio.StatusFailed); status {
			case 0, 1, 3, 11, 15:
			default:
				t.Fatalf("status %#x", status)
			}
		}
		if bus.Counters()["transport_panics"] != 0 {
			t.Fatal("the device model panicked")
		}
		if err := bus.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := bus.SaveState(); err != nil {
			t.Fatal(err)
		}
	})
}

// panicking is a device model with a bug.
type panicking struct{ *rng.Device }

func (panicking) Run(context.Context, virtio.Active) error { panic("bug: in a device") }

// TestPanicBecomesReset shows that the policy for bugs in device models fires.
func TestPanicBecomesReset(t *testing.T) {
	host, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(host)
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	raised := make(chan struct{}, 8)
	bus := mmio.New(mmio.Config{Device: panicking{rng.New(nil)}, Mem: mem, Interrupt: func() { raised <- struct{}{} }})
	write := func(off uint64, v uint32) { bus.Write(off, binary.LittleEndian.AppendUint32(nil, v)) }
	for _, a := range [][2]uint32{{0x70, 1}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x70, 11}, {0x70, 15}} {
		write(uint64(a[0]), a[1])
	}
	<-raised
	var b [4]byte
	bus.Read(0x70, b[:])
	if b[0]&virtio.StatusNeedsReset == 0 || bus.Counters()["transport_panics"] != 1 {
		t.Errorf("status %#x, counters %v", b, bus.Counters())
	}
	write(0x70, 0)
	if bus.Read(0x70, b[:]); b[0] != 0 {
		t.Errorf("status %#x after a reset", b)
	}
}

// TestLoadStateRefuses alters one field of a good state at a time (SNAP-04).
func TestLoadStateRefuses(t *testing.T) {
	host, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(host)
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() *mmio.Transport {
		return mmio.New(mmio.Config{Device: rng.New(rand.New(rand.NewSource(1))), Mem: mem, Interrupt: func() {}})
	}
	good, err := fresh().SaveState()
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh().LoadState(good); err != nil {
		t.Fatalf("a good state is refused: %v", err)
	}
	for name, spoil := range map[string]func(*mmio.State){
		"other device":    func(s *mmio.State) { s.Type = virtio.TypeBlock },
		"status":          func(s *mmio.State) { s.Status = 4 },
		"features":        func(s *mmio.State) { s.Status, s.DriverFeatures = 11, 1<<63 },
		"interrupts":      func(s *mmio.State) { s.Interrupts = 4 },
		"no queues":       func(s *mmio.State) { s.Queues = nil },
		"size too large":  func(s *mmio.State) { s.Queues[0].Size = 4096 },
		"ready, no size":  func(s *mmio.State) { s.Status, s.Queues[0].Ready = 11, true },
		"ready too early": func(s *mmio.State) { s.Status, s.Queues[0].Ready, s.Queues[0].Size = 1, true, 8 },
		"rings outside": func(s *mmio.State) {
			s.Status, s.Queues[0].Ready, s.Queues[0].Size, s.Queues[0].Desc = 15, true, 8, 1<<40
		},
		"device state lies": func(s *mmio.State) { s.Device = json.RawMessage("[") },
	} {
		s := good
		s.Queues = append(s.Queues[:0:0], good.Queues...)
		spoil(&s)
		if err := fresh().LoadState(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
