package virtiotest

import (
	"cmp"
	"hash/maphash"
	"slices"
	"testing"

	"spore/guestmem"
)

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

// malformed submits a malformed chain and checks that it comes back empty, that no byte of memory has changed
// but the used ring's, and that the device goes on without a reset.
func malformed(t *testing.T, c Case, qc chainCase, q int) {
	d := NewDriver(t, c.New(t))
	d.Negotiate(All)
	d.Pause() // so that the device cannot be faster than the first look at memory
	qc.make(d, q)
	for _, u := range d.through(q, span{}) {
		if u.Len != 0 {
			t.Errorf("Q-14: a malformed chain came back with %d bytes", u.Len)
		}
	}
	if d.NeedsReset() {
		t.Errorf("the device needs a reset after a malformed chain")
	}
	c.Use(t, d) // the queue goes on
	good(t, c, d)
}

// oneSided submits a chain that is well-formed but has buffers of one direction only, whatever the device wants.
// It comes back, and nothing but what may be written has changed.
func oneSided(t *testing.T, c Case, q int, write uint16) {
	d := NewDriver(t, c.New(t))
	d.Negotiate(All)
	d.Pause()
	d.SubmitRaw(q, Link([]Desc{{somewhere, 64, write, 0}, {somewhere + 64, 64, write, 0}})...)
	writable := span{somewhere, somewhere + 128}
	if write == 0 {
		writable = span{}
	}
	d.through(q, writable)
	good(t, c, d)
}

// through lets the paused device work until a queue has given back a chain, pauses it, and checks that no byte
// outside the used rings and writable has changed. At the end it lets the device go on.
func (d *Driver) through(q int, writable span) []Used {
	d.T.Helper()
	before := d.shadow(writable)
	d.Resume()
	used := d.WaitUsed(q, 1)
	d.Pause()
	if d.shadow(writable) != before {
		d.T.Error("memory that is not the device's has changed")
	}
	d.Resume()
	return used
}

// lazily puts every malformed chain that fits into the ring of a queue whose chains the device takes when it
// wants to, then breaks the ring's index. Whether the device has looked or not, it serves after a reset, and no
// byte outside the rings has changed.
func lazily(t *testing.T, c Case, q int) {
	d := NewDriver(t, c.New(t))
	d.Negotiate(All)
	d.Pause()
	for i, qc := range chainCases {
		if i < int(d.rings[q].size)/4 {
			qc.make(d, q)
		}
	}
	before := d.shadow()
	d.Resume()
	d.Kick(q)
	d.Pause()
	d.put16(d.rings[q].avail+2, d.rings[q].availIdx+d.rings[q].size+1)
	d.Resume()
	d.Kick(q)
	d.Pause()
	r := d.rings[q]
	d.put16(r.avail+2, r.availIdx)
	if d.shadow() != before {
		t.Error("memory outside the used rings has changed")
	}
	d.Resume()
	good(t, c, d)
}

// span is a range of guest addresses.
type span struct{ from, to guestmem.GPA }

// shadow is a hash of all memory but the used rings, the used events, which are the driver's business, and except.
// The device must be paused.
func (d *Driver) shadow(except ...span) uint64 {
	d.T.Helper()
	except = slices.Clone(except)
	for _, r := range d.rings {
		except = append(except, span{r.avail + 4 + 2*guestmem.GPA(r.size), r.used + d.at.stride/2})
	}
	slices.SortFunc(except, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var h maphash.Hash
	h.SetSeed(d.seed)
	for _, region := range d.Mem.Regions() {
		at, end := region.Base, region.Base+guestmem.GPA(len(region.Host))
		add := func(to guestmem.GPA) {
			if to = min(to, end); at < to {
				h.Write(region.Host[at-region.Base : to-region.Base])
			}
		}
		for _, e := range except {
			if e.from < e.to {
				add(e.from)
				at = max(at, e.to)
			}
		}
		add(end)
	}
	return h.Sum64()
}

// shadowAll is a hash of the low memory that the suite uses, the rings included. The device must be paused or reset.
func (d *Driver) shadowAll() uint64 {
	d.T.Helper()
	b, err := d.Mem.Slice(ringBase, somewhere+ringStride-ringBase)
	if err != nil {
		d.T.Fatal(err)
	}
	return maphash.Bytes(d.seed, b)
}
