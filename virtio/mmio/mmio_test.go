package mmio_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand"
	"testing"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/mmio"
	"spore/virtio/rng"
	"spore/virtio/virtiotest"
)

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
	up := func(s *mmio.State, status uint32) { s.Status, s.DriverFeatures = status, virtio.FeatureVersion1 }
	for name, spoil := range map[string]func(*mmio.State){
		"other device":    func(s *mmio.State) { s.Type = virtio.TypeBlock },
		"status":          func(s *mmio.State) { s.Status = 4 },
		"features":        func(s *mmio.State) { s.Status, s.DriverFeatures = 11, 1<<63 },
		"old driver":      func(s *mmio.State) { s.Status = 11 },
		"interrupts":      func(s *mmio.State) { s.Interrupts = 4 },
		"no queues":       func(s *mmio.State) { s.Queues = nil },
		"size too large":  func(s *mmio.State) { s.Queues[0].Size = 4096 },
		"ready, no size":  func(s *mmio.State) { up(s, 11); s.Queues[0].Ready = true },
		"ready too early": func(s *mmio.State) { s.Status, s.Queues[0].Ready, s.Queues[0].Size = 1, true, 8 },
		"size 7, ready":   func(s *mmio.State) { up(s, 11); s.Queues[0].Ready, s.Queues[0].Size = true, 7 },
		"rings outside": func(s *mmio.State) {
			up(s, 15)
			s.Queues[0].Ready, s.Queues[0].Size, s.Queues[0].Desc = true, 8, 1<<40
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

// TestResumeRaisesAgain shows that an interrupt whose edge was lost with a saved machine reaches the driver.
func TestResumeRaisesAgain(t *testing.T) {
	for _, pending := range []uint32{0, 1, 2} {
		raised := 0
		bus := mmio.New(mmio.Config{Device: rng.New(nil), Interrupt: func() { raised++ }})
		s, err := bus.SaveState()
		if err != nil {
			t.Fatal(err)
		}
		s.Interrupts = pending
		if err := bus.LoadState(s); err != nil {
			t.Fatal(err)
		}
		if err := bus.Resume(); err != nil {
			t.Fatal(err)
		}
		if got := raised != 0; got != (pending != 0) {
			t.Errorf("interrupts %d pending: raised %d times", pending, raised)
		}
	}
}

// changing is a device model with a configuration that changes.
type changing struct {
	*rng.Device
	change chan struct{}
}

func (c changing) Run(ctx context.Context, a virtio.Active) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.change:
			a.Changed()
		}
	}
}

// TestConfigGeneration shows that a driver can tell a configuration that changed while it was reading.
func TestConfigGeneration(t *testing.T) {
	c := changing{rng.New(nil), make(chan struct{})}
	d := virtiotest.NewDriver(t, c)
	d.Negotiate(virtiotest.All)
	before := d.Read(virtiotest.RegConfigGeneration)
	c.change <- struct{}{}
	d.Await("a new generation", func() bool { return d.Read(virtiotest.RegConfigGeneration) != before })
	if d.NeedsReset() {
		t.Error("a changed configuration is a failure")
	}
}

// TestInterruptACK shows that each bit is cleared by itself and only by the driver.
func TestInterruptACK(t *testing.T) {
	bus := mmio.New(mmio.Config{Device: rng.New(nil), Interrupt: func() {}})
	s, err := bus.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	s.Interrupts = 3
	if err := bus.LoadState(s); err != nil {
		t.Fatal(err)
	}
	read := func() uint32 {
		var b [4]byte
		bus.Read(virtiotest.RegInterruptStatus, b[:])
		return binary.LittleEndian.Uint32(b[:])
	}
	for _, step := range []struct{ ack, want uint32 }{{0, 3}, {1, 2}, {0xfffffffc, 2}, {3, 0}} {
		bus.Write(virtiotest.RegInterruptACK, binary.LittleEndian.AppendUint32(nil, step.ack))
		if got := read(); got != step.want {
			t.Errorf("acknowledge %#x: %#x is left, want %#x", step.ack, got, step.want)
		}
	}
}

// stubborn is a device model that breaks its contract: it stops when it is let go.
type stubborn struct {
	*rng.Device
	letGo chan struct{}
}

func (s stubborn) Run(context.Context, virtio.Active) error { <-s.letGo; return nil }

// TestPauseIsBounded shows that a device that does not stop makes Pause fail, and that it can be tried again.
func TestPauseIsBounded(t *testing.T) {
	s := stubborn{rng.New(nil), make(chan struct{})}
	d := virtiotest.NewDriver(t, s)
	d.Negotiate(virtiotest.All)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Bus.Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("pause: %v", err)
	}
	if err := d.Bus.Resume(); err == nil {
		t.Error("a device that is still stopping goes on")
	}
	if _, err := d.Bus.SaveState(); err == nil {
		t.Error("a device that is still stopping is saved")
	}
	close(s.letGo)
	d.Pause()
	if _, err := d.Bus.SaveState(); err != nil {
		t.Error(err)
	}
	if err := d.Bus.Resume(); err != nil {
		t.Error(err)
	}
}
