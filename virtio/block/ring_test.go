package block

import (
	"context"
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

// patience is how long a test waits for what must happen; it is no measure of anything.
const patience = 90 * time.Second

// Guest memory of a ring under test: the rings first, then one slot of slotSize for each head.
const (
	ringDesc  = 0x0000
	ringAvail = 0x4000
	ringUsed  = 0x5000
	ringSlots = 0x10000
	slotSize  = 0x4000
	slotDescs = 8 // descriptors of each head: head = slotDescs × slot
	slots     = queueSize / slotDescs
)

// ring is a driver of one queue that gives full control of what the device sees. It is for one goroutine.
type ring struct {
	t     testing.TB
	mem   *guestmem.Memory
	ram   []byte
	avail uint16 // our index of the available ring
	seen  uint16 // of the used ring
	state queue.State
	q     *queue.Queue
	used  chan struct{} // an interrupt came
}

func newRing(t testing.TB) *ring {
	t.Helper()
	ram, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guestmem.Unmap(ram) })
	mem, err := guestmem.New(guestmem.Region{Host: ram})
	if err != nil {
		t.Fatal(err)
	}
	return &ring{
		t: t, mem: mem, ram: ram, used: make(chan struct{}, 1),
		state: queue.State{Size: queueSize, Ready: true, Desc: ringDesc, Avail: ringAvail, Used: ringUsed},
	}
}

// run starts d on the ring and returns what ends it and waits for its end. kick may be nil.
func (r *ring) run(d *Device, features uint64, kick *os.File) (stop func() error) {
	r.t.Helper()
	q, err := queue.New(r.mem, r.state, queue.Features{}, kick)
	if err != nil {
		r.t.Fatal(err)
	}
	r.q = q
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, r.active(features)) }()
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case result = <-done:
			case <-time.After(patience):
				panic("the device does not stop")
			}
			r.state = q.State()
		})
		return result
	}
	r.t.Cleanup(func() { stop() })
	return stop
}

// active is what a device on the ring gets.
func (r *ring) active(features uint64) virtio.Active {
	return virtio.Active{Features: features, Mem: r.mem, Queues: []*queue.Queue{r.q}, Used: func(int) {
		select {
		case r.used <- struct{}{}:
		default:
		}
	}}
}

// slot returns the memory of a slot.
func (r *ring) slot(n int) []byte { return r.ram[ringSlots+n*slotSize:][:slotSize] }

// put fills slot n with a chain: the header and out are readable, then room bytes and the status are writable.
// It returns the writable part.
func (r *ring) put(n int, kind uint32, sector uint64, out []byte, room int) (in []byte) {
	b := r.slot(n)
	at := uint64(ringSlots + n*slotSize)
	copy(b, header(kind, sector))
	copy(b[headerSize:], out)
	readable := headerSize + len(out)
	in = b[readable:][:room+1]
	for i := range in {
		in[i] = 0xff
	}
	r.describe(n, 0, at, uint32(readable), 1)
	r.describe(n, 1, at+uint64(readable), uint32(room+1), 2)
	return in
}

// describe writes descriptor i of slot n; with the next flag (1) it leads to the one after it.
func (r *ring) describe(n, i int, at uint64, length uint32, flags uint16) {
	index := slotDescs*n + i
	d := r.ram[ringDesc+16*index:]
	binary.LittleEndian.PutUint64(d, at)
	binary.LittleEndian.PutUint32(d[8:], length)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], uint16(index+1))
}

// offer makes the slots available, all at once, without a kick.
func (r *ring) offer(list ...int) {
	for _, n := range list {
		binary.LittleEndian.PutUint16(r.ram[ringAvail+4+2*(int(r.avail)%queueSize):], uint16(n*slotDescs))
		r.avail++
	}
	if err := r.mem.StoreUint16(ringAvail+2, r.avail); err != nil {
		r.t.Fatal(err)
	}
}

// submit is offer and a kick.
func (r *ring) submit(list ...int) {
	r.offer(list...)
	r.q.Kick()
}

// poll returns the next used element, if there is one.
func (r *ring) poll() (slot int, written uint32, ok bool) {
	idx, err := r.mem.LoadUint16(ringUsed + 2)
	if err != nil {
		r.t.Fatal(err)
	}
	if idx == r.seen {
		return 0, 0, false
	}
	e := r.ram[ringUsed+4+8*(int(r.seen)%queueSize):]
	r.seen++
	return int(binary.LittleEndian.Uint32(e)) / slotDescs, binary.LittleEndian.Uint32(e[4:]), true
}

// wait returns the next used element, by way of the interrupt.
func (r *ring) wait() (slot int, written uint32) {
	r.t.Helper()
	for {
		if slot, written, ok := r.poll(); ok {
			return slot, written
		}
		select {
		case <-r.used:
		case <-time.After(patience):
			r.t.Fatal("no interrupt")
		}
	}
}

// do submits one request in slot 0 and returns its status, its data and the length reported.
func (r *ring) do(kind uint32, sector uint64, out []byte, room int) (status byte, in []byte, written uint32) {
	r.t.Helper()
	in = r.put(0, kind, sector, out, room)
	r.submit(0)
	_, written = r.wait()
	return in[room], in[:room], written
}
