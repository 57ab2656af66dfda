// Package virtiotest drives device models the way a guest does, through the transport's registers and rings in
// memory, well or badly, and holds every device to one suite. It is for tests only.
package virtiotest

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/mmio"
)

// Limit ends a wait for the device. It only has to end: a loaded machine under the race detector is slow.
const Limit = 2 * time.Minute

// Where things are in the suite's memory: rings at the bottom, buffers above, a hole, and more RAM.
const (
	lowSize    = 2 << 20
	highBase   = 16 << 20
	highSize   = 1 << 20
	ringBase   = 0x10000
	ringStride = 0x10000
	bufferBase = 1 << 20
	ringSize   = 64 // descriptors, or the device's maximum if that is less
)

// layout is where things are in a driver's memory.
type layout struct {
	low, high     int          // bytes from 0, and from highBase
	rings, stride guestmem.GPA // the first queue's rings, and how far it is to the next one's
	buffers       guestmem.GPA // from here to the end of low memory
}

var suiteLayout = layout{low: lowSize, high: highSize, rings: ringBase, stride: ringStride, buffers: bufferBase}

// Driver is a guest's driver of one device. It belongs to the test's goroutine.
type Driver struct {
	T   *testing.T
	Mem *guestmem.Memory
	Dev virtio.Device
	Bus *mmio.Transport

	Features uint64 // negotiated
	at       layout
	rings    []*ring
	kicks    []*os.File
	buffers  guestmem.GPA // next free address for buffers

	seed   maphash.Seed  // of the hashes of memory
	raised chan struct{} // an interrupt came
	count  atomic.Uint64 // how many
}

// ring is the driver's side of one queue.
type ring struct {
	size              uint16
	desc, avail, used guestmem.GPA
	next              uint16 // next descriptor to use
	availIdx, usedIdx uint16
	writable          map[uint16]uint64 // by head: what the device may say it wrote
}

// Desc is a descriptor, as raw as a guest can make it.
type Desc struct {
	Addr  guestmem.GPA
	Len   uint32
	Flags uint16
	Next  uint16
}

// Descriptor flags.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Buffer is one piece of a request: Data for the device to read, or Len bytes for it to write.
type Buffer struct {
	Data []byte
	Len  int
}

// Used is a chain that the device has given back.
type Used struct {
	Head uint16
	Len  uint32
}

// NewDriver makes a driver with memory of its own for a device that is reset.
func NewDriver(t *testing.T, dev virtio.Device) *Driver {
	t.Helper()
	mem := newMemory(t, suiteLayout)
	d := newDriver(t, dev, mem, suiteLayout, newKicks(t, len(dev.QueueSizes())))
	t.Cleanup(d.Close)
	return d
}

// newMemory maps memory until the test ends.
func newMemory(t testing.TB, at layout) *guestmem.Memory {
	t.Helper()
	regions := []guestmem.Region{{}, {Base: highBase}}
	for i, size := range []int{at.low, at.high} {
		host, err := guestmem.MapAnon(size)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { guestmem.Unmap(host) })
		regions[i].Host = host
	}
	mem, err := guestmem.New(regions...)
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

// newKicks makes eventfds that are there until the test ends.
func newKicks(t testing.TB, n int) (kicks []*os.File) {
	t.Helper()
	for range n {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		kick := os.NewFile(uintptr(fd), "kick")
		t.Cleanup(func() { kick.Close() })
		kicks = append(kicks, kick)
	}
	return kicks
}

// newDriver makes a driver over memory and eventfds that exist.
func newDriver(t *testing.T, dev virtio.Device, mem *guestmem.Memory, at layout, kicks []*os.File) *Driver {
	d := &Driver{T: t, Mem: mem, Dev: dev, at: at, kicks: kicks, buffers: at.buffers, seed: maphash.MakeSeed(), raised: make(chan struct{}, 1)}
	d.Bus = mmio.New(mmio.Config{
		Device: dev, Mem: mem, Interrupt: d.interrupt, Kick: func(q int) *os.File { return d.kicks[q] },
	})
	return d
}

// Close stops the device.
func (d *Driver) Close() {
	if err := d.Bus.Close(); err != nil {
		d.T.Error(err)
	}
}

func (d *Driver) interrupt() {
	d.count.Add(1)
	select {
	case d.raised <- struct{}{}:
	default:
	}
}

// Interrupts is how many interrupts there were.
func (d *Driver) Interrupts() uint64 { return d.count.Load() }

// Alloc reserves n bytes of guest memory for a buffer.
func (d *Driver) Alloc(n int) guestmem.GPA {
	a := d.buffers
	if a+guestmem.GPA(n) > guestmem.GPA(d.at.low) {
		a = d.at.buffers
	}
	d.buffers = (a + guestmem.GPA(n) + 63) &^ 63
	return a
}

// Submit puts a chain of buffers into a queue and kicks. It returns the head, and where each buffer lies.
func (d *Driver) Submit(q int, buffers ...Buffer) (head uint16, at []guestmem.GPA) {
	d.T.Helper()
	var descs []Desc
	for _, b := range buffers {
		n, flags := len(b.Data), uint16(0)
		if b.Data == nil {
			n, flags = b.Len, Write
		}
		a := d.Alloc(n)
		if err := d.Mem.WriteAt(b.Data, a); err != nil {
			d.T.Fatal(err)
		}
		at = append(at, a)
		descs = append(descs, Desc{Addr: a, Len: uint32(n), Flags: flags})
	}
	return d.SubmitRaw(q, Link(descs)...), at
}

// Link makes a chain of descriptors whose Next fields count from 1; SubmitRaw moves them to where they go.
func Link(descs []Desc) []Desc {
	for i := range descs[:max(0, len(descs)-1)] {
		descs[i].Flags |= Next
		descs[i].Next = uint16(i + 1)
	}
	return descs
}

// SubmitRaw writes descriptors as they are, except that a Next below the ring's size is relative to the first,
// makes the first of them available and kicks.
func (d *Driver) SubmitRaw(q int, descs ...Desc) (head uint16) {
	d.T.Helper()
	r := d.rings[q]
	if int(r.next)+len(descs) > int(r.size) {
		r.next = 0
	}
	head = r.next
	var writable uint64
	for i, desc := range descs {
		if desc.Next < r.size {
			desc.Next += head
		}
		if desc.Flags&Write != 0 {
			writable += uint64(desc.Len)
		}
		d.PutDesc(r.desc+16*guestmem.GPA(int(head)+i), desc)
	}
	r.next = (head + uint16(max(1, len(descs)))) % r.size
	r.writable[head] = writable
	d.Publish(q, head)
	d.Kick(q)
	return head
}

// PutDesc writes one descriptor at an address.
func (d *Driver) PutDesc(at guestmem.GPA, desc Desc) {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(desc.Addr))
	b = le.AppendUint32(b, desc.Len)
	b = le.AppendUint16(b, desc.Flags)
	b = le.AppendUint16(b, desc.Next)
	if err := d.Mem.WriteAt(b, at); err != nil {
		d.T.Fatal(err)
	}
}

// Publish makes a head available without a kick, and asks for an interrupt when it is used.
func (d *Driver) Publish(q int, head uint16) {
	r := d.rings[q]
	d.put16(r.avail+4+2*guestmem.GPA(r.availIdx%r.size), head)
	d.put16(r.avail+4+2*guestmem.GPA(r.size), r.usedIdx) // used_event
	r.availIdx++
	d.put16(r.avail+2, r.availIdx)
}

func (d *Driver) put16(a guestmem.GPA, v uint16) {
	if err := d.Mem.StoreUint16(a, v); err != nil {
		d.T.Fatal(err)
	}
}

// Kick tells the device that a queue has something, as an ioeventfd does.
func (d *Driver) Kick(q int) {
	one := [8]byte{1}
	if _, err := d.kicks[q].Write(one[:]); err != nil {
		d.T.Fatal(err)
	}
}

// Completed returns what the device has given back in a queue since the last call, and asks for an interrupt at
// the next. It also checks that no chain claims more than it can hold.
func (d *Driver) Completed(q int) []Used {
	d.T.Helper()
	var all []Used
	// What comes between the look at the index and the new used_event raises no interrupt, so a driver looks
	// again once it has asked (virtio 1.2 §2.7.14). The store is a full fence. A test may write the used index
	// itself, so the looks are bounded.
	for range 1 << 16 {
		some := d.collect(q)
		if all = append(all, some...); len(some) == 0 {
			break
		}
	}
	return all
}

// collect takes what the used ring holds now, at most a ring full, and sets used_event.
func (d *Driver) collect(q int) []Used {
	d.T.Helper()
	r := d.rings[q]
	idx, err := d.Mem.LoadUint16(r.used + 2)
	if err != nil {
		d.T.Fatal(err)
	}
	var all []Used
	for r.usedIdx != idx {
		at := r.used + 4 + 8*guestmem.GPA(r.usedIdx%r.size)
		head, _ := d.Mem.LoadUint32(at)
		n, _ := d.Mem.LoadUint32(at + 4)
		if limit, ok := r.writable[uint16(head)]; !ok || uint64(n) > limit {
			d.T.Errorf("Q-15: queue %d: head %d used with %d bytes, of %d", q, head, n, limit)
		}
		all = append(all, Used{uint16(head), n})
		r.usedIdx++
	}
	d.put16(r.avail+4+2*guestmem.GPA(r.size), r.usedIdx)
	return all
}

// WaitUsed waits until a queue has given back n chains, and returns them.
func (d *Driver) WaitUsed(q, n int) []Used {
	d.T.Helper()
	var all []Used
	d.Await("used buffers", func() bool {
		needsReset := d.NeedsReset() // before the look: afterwards nothing comes
		all = append(all, d.Completed(q)...)
		if len(all) < n && needsReset {
			d.T.Fatalf("queue %d gave back %d chains of %d, then the device asked for a reset", q, len(all), n)
		}
		return len(all) >= n
	})
	return all
}

// NeedsReset reports whether the device has asked for a reset.
func (d *Driver) NeedsReset() bool { return d.Read(RegStatus)&64 != 0 }

// Await waits, interrupt by interrupt, until a condition holds. Interrupts are acknowledged as a driver does.
func (d *Driver) Await(what string, ok func() bool) {
	d.T.Helper()
	limit := time.NewTimer(Limit)
	defer limit.Stop()
	for !ok() {
		select {
		case <-d.raised:
			d.Write(RegInterruptACK, d.Read(RegInterruptStatus))
		case <-limit.C:
			d.T.Fatalf("no %s within %s; counters %v", what, Limit, d.Bus.Counters())
		}
	}
}

// Pause stops the device where it is.
func (d *Driver) Pause() {
	d.T.Helper()
	d.Bus.PauseSoon() // as a machine does
	if err := d.Bus.Pause(context.Background()); err != nil {
		d.T.Fatal(err)
	}
}

// Resume lets the device go on.
func (d *Driver) Resume() {
	d.T.Helper()
	if err := d.Bus.Resume(); err != nil {
		d.T.Fatal(err)
	}
}

// Bytes reads guest memory.
func (d *Driver) Bytes(a guestmem.GPA, n int) []byte {
	d.T.Helper()
	b := make([]byte, n)
	if err := d.Mem.ReadAt(b, a); err != nil {
		d.T.Fatal(err)
	}
	return b
}
