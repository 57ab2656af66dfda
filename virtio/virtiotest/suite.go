package virtiotest

import (
	"fmt"
	"testing"

	"spore/guestmem"
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
	for _, q := range c.Eager {
		for _, qc := range chainCases {
			t.Run(fmt.Sprintf("%s, queue %d", qc.name, q), func(t *testing.T) { malformed(t, c, qc, q) })
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
	twin := newDriver(t, c.New(t), d.Mem)
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

// chainCase is a malformed chain. The device must give it back with nothing written, and go on.
type chainCase struct {
	name     string
	indirect bool // needs VIRTIO_F_INDIRECT_DESC, which all have here
	make     func(d *Driver, q int)
}

// somewhere is a fine address for a buffer that nobody looks at.
const somewhere = bufferBase + 0x80000

var chainCases = []chainCase{
	{name: "Q-01 a chain that is a circle", make: raw(Desc{somewhere, 64, Next, 1}, Desc{somewhere, 64, Next, 0})},
	{name: "Q-01 a descriptor that follows itself", make: raw(Desc{somewhere, 64, Next, 0})},
	{name: "Q-01 an indirect circle", make: indirect(Desc{somewhere, 64, Next, 1}, Desc{somewhere, 64, Next, 0})},
	{name: "Q-02 a next beyond the table", make: raw(Desc{somewhere, 64, Next, 0x7fff})},
	{name: "Q-02 an indirect next beyond the table", make: indirect(Desc{somewhere, 64, Next, 9})},
	{name: "Q-03 an address that wraps", make: raw(Desc{^guestmem.GPA(0) - 7, 64, 0, 0})},
	{name: "Q-03 a length past the end of memory", make: raw(Desc{highBase + highSize - 32, 64, 0, 0})},
	{name: "Q-03 a buffer across a hole", make: raw(Desc{lowSize - 32, 64, 0, 0})},
	{name: "Q-03 a buffer in the hole", make: raw(Desc{lowSize + 4096, 64, Write, 0})},
	{name: "Q-17 a buffer in device memory", make: raw(Desc{0xd0000000, 64, Write, 0})},
	{name: "Q-03 a buffer in the rings", make: func(d *Driver, q int) {
		d.SubmitRaw(q, Desc{d.rings[q].used, 64, Write, 0})
	}},
	{name: "Q-05 an indirect table of no whole descriptors", make: table(24, Indirect)},
	{name: "Q-05 an empty indirect table", make: table(0, Indirect)},
	{name: "Q-05 an indirect table of 4 GiB", make: table(0xfffffff0, Indirect)},
	{name: "Q-05 an indirect table with a next", make: table(16, Indirect|Next)},
	{name: "Q-05 a writable indirect table", make: table(16, Indirect|Write)},
	{name: "Q-05 a nested indirect table", make: indirect(Desc{somewhere, 16, Indirect, 0})},
	{name: "Q-05 an indirect table outside memory", make: raw(Desc{highBase + highSize, 64, Indirect, 0})},
	{name: "Q-09 lengths that sum up to more than memory", make: func(d *Driver, q int) {
		var descs []Desc
		for range 4 {
			descs = append(descs, Desc{bufferBase, lowSize - bufferBase, 0, 0})
		}
		d.SubmitRaw(q, Link(descs)...)
	}},
	{name: "Q-13 a readable buffer after a writable one", make: raw(Desc{somewhere, 64, Write | Next, 1}, Desc{somewhere + 64, 64, 0, 0})},
}

func raw(descs ...Desc) func(*Driver, int) {
	return func(d *Driver, q int) { d.SubmitRaw(q, descs...) }
}

// indirect submits one descriptor that points at a table of these.
func indirect(descs ...Desc) func(*Driver, int) {
	return func(d *Driver, q int) {
		at := d.Alloc(16 * len(descs))
		for i, desc := range descs {
			d.PutDesc(at+16*guestmem.GPA(i), desc)
		}
		d.SubmitRaw(q, Desc{at, uint32(16 * len(descs)), Indirect, 0})
	}
}

// table submits an indirect descriptor of a length and with flags over a table that would be fine.
func table(n uint32, flags uint16) func(*Driver, int) {
	return func(d *Driver, q int) {
		at := d.Alloc(64)
		d.PutDesc(at, Desc{somewhere, 64, 0, 0})
		d.SubmitRaw(q, Desc{at, n, flags, 0})
	}
}

// malformed submits a malformed chain and checks that it comes back empty, that no byte outside the rings has
// changed, and that the device goes on without a reset.
func malformed(t *testing.T, c Case, qc chainCase, q int) {
	d := NewDriver(t, c.New(t))
	d.Negotiate(All)
	qc.make(d, q)
	d.Pause()
	before := d.buffersCopy()
	if err := d.Bus.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, u := range d.WaitUsed(q, 1) {
		if u.Len != 0 {
			t.Errorf("Q-14: a malformed chain came back with %d bytes", u.Len)
		}
	}
	if d.NeedsReset() {
		t.Errorf("the device needs a reset after a malformed chain")
	}
	d.Pause()
	if after := d.buffersCopy(); after != before {
		t.Error("memory outside the rings has changed")
	}
	if err := d.Bus.Resume(); err != nil {
		t.Fatal(err)
	}
	c.Use(t, d) // the queue goes on
	good(t, c, d)
}

// buffersCopy is the memory above the rings, of the part that the cases use.
func (d *Driver) buffersCopy() string { return string(d.Bytes(bufferBase, 1<<20)) }
