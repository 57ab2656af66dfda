package virtiotest

import (
	"fmt"
	"slices"
	"testing"

	"spore/virtio"
)

// Case is one device for the suite.
type Case struct {
	// New makes a device; for the one that takes over a saved state too.
	New func(t *testing.T) virtio.Device
	// Use makes one good request and checks the answer. It must work after a reset, and again and again.
	Use func(t *testing.T, d *Driver)
	// Eager are the queues whose chains the device takes at once; the others wait for something of the host's.
	Eager []int
}

// lazy are the queues that are not eager.
func (c Case) lazy(t *testing.T) []int {
	var all []int
	for q := range c.New(t).QueueSizes() {
		if !slices.Contains(c.Eager, q) {
			all = append(all, q)
		}
	}
	return all
}

// Suite holds a device to what every device must do: its life, the transport's rules (TR-*) and the queues'
// (Q-*), each a subtest by the name of the hazard.
func Suite(t *testing.T, c Case) {
	t.Run("life", func(t *testing.T) { life(t, c) })
	t.Run("life without event indices", func(t *testing.T) {
		d := NewDriver(t, c.New(t))
		d.Negotiate(All &^ virtio.FeatureEventIdx &^ virtio.FeatureIndirect)
		c.Use(t, d)
		c.Use(t, d)
	})
	for _, tc := range transportCases {
		t.Run(tc.name, func(t *testing.T) {
			d := NewDriver(t, c.New(t))
			tc.run(t, c, d)
			good(t, c, d)
		})
	}
	for _, q := range c.lazy(t) {
		t.Run(fmt.Sprintf("Q-01 to Q-17 in one ring, queue %d", q), func(t *testing.T) { lazily(t, c, q) })
	}
	for _, q := range c.Eager {
		for _, qc := range chainCases {
			t.Run(fmt.Sprintf("%s, queue %d", qc.name, q), func(t *testing.T) { malformed(t, c, qc, q) })
		}
		for _, write := range []uint16{0, Write} {
			name := map[uint16]string{0: "readable", Write: "writable"}[write]
			t.Run(fmt.Sprintf("Q-13 nothing but %s buffers, queue %d", name, q), func(t *testing.T) { oneSided(t, c, q, write) })
		}
		for _, rc := range ringCases {
			t.Run(fmt.Sprintf("%s, queue %d", rc.name, q), func(t *testing.T) {
				d := NewDriver(t, c.New(t))
				d.Negotiate(All)
				rc.run(t, d, q)
				good(t, c, d)
			})
		}
	}
}

// good is the oracle after whatever was done to a device: no panic was caught, and after a reset it serves.
func good(t *testing.T, c Case, d *Driver) {
	t.Helper()
	if n := d.Bus.Counters()["transport_panics"]; n != 0 {
		t.Errorf("the device model panicked %d times", n)
	}
	d.Reset()
	d.Negotiate(All)
	c.Use(t, d)
}

// life is negotiate → use → pause → save → load → use → reset → negotiate → use.
func life(t *testing.T, c Case) {
	d := NewDriver(t, c.New(t))
	d.Negotiate(All)
	c.Use(t, d)
	d.Pause()
	state, err := d.Bus.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	twin := newDriver(t, c.New(t), d.Mem, d.at, newKicks(t, len(d.kicks)))
	defer twin.Close()
	twin.rings, twin.Features, twin.buffers = d.rings, d.Features, d.buffers
	if err := twin.Bus.LoadState(state); err != nil {
		t.Fatal(err)
	}
	if err := twin.Bus.Resume(); err != nil {
		t.Fatal(err)
	}
	c.Use(t, twin)
	twin.Pause()
	if err := twin.Bus.Resume(); err != nil {
		t.Fatal(err)
	}
	c.Use(t, twin)
	twin.Reset()
	if got := twin.Read(RegStatus); got != 0 {
		t.Errorf("status is %#x after a reset", got)
	}
	twin.Negotiate(All)
	c.Use(t, twin)
}
