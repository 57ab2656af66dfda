package balloon

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

// patience is how long a test waits for what must happen; it is no measure of anything.
const patience = 90 * time.Second

// Guest memory under test: a region of 4 MiB with the rings at its start, one that touches it, and one far away.
const (
	ramSize  = 4 << 20
	farBase  = 1 << 32
	ringStep = 0x10000 // between the rings of two queues
	ringsEnd = 5 * ringStep
	bufferAt = ringsEnd
)

// discards is a Backend that remembers.
type discards struct {
	mu   sync.Mutex
	list []span
	fail error
}

func (d *discards) Discard(a guestmem.GPA, n uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	d.list = append(d.list, span{uint64(a), uint64(a) + n})
	return nil
}

// refuse makes every later Discard fail with err. The lock is what the race detector sees: an index stored in guest
// memory orders nothing for it.
func (d *discards) refuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *discards) take() (list []span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list, d.list = d.list, nil
	return list
}

// guest is the driver of a balloon under test.
type guest struct {
	t       testing.TB
	mem     *guestmem.Memory
	ram     []byte
	queues  [5]*queue.Queue
	states  [5]queue.State
	avail   [5]uint16
	seen    [5]uint16
	used    chan struct{}
	changes chan struct{}
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	g := &guest{t: t, used: make(chan struct{}, 1), changes: make(chan struct{}, 100)}
	var regions []guestmem.Region
	for _, base := range []guestmem.GPA{0, ramSize, farBase} {
		host, err := guestmem.MapAnon(ramSize)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { guestmem.Unmap(host) })
		regions = append(regions, guestmem.Region{Base: base, Host: host})
	}
	g.ram = regions[0].Host
	var err error
	if g.mem, err = guestmem.New(regions...); err != nil {
		t.Fatal(err)
	}
	for i := range g.states {
		at := guestmem.GPA(i * ringStep)
		g.states[i] = queue.State{Size: queueSize, Ready: true, Desc: at, Avail: at + 0x4000, Used: at + 0x8000}
	}
	return g
}

// run starts d with the queues given and returns what ends it.
func (g *guest) run(d *Device, features uint64, queues ...int) (stop func() error) {
	g.t.Helper()
	a := virtio.Active{Features: features, Mem: g.mem, Queues: make([]*queue.Queue, 5)}
	for _, i := range queues {
		q, err := queue.New(g.mem, g.states[i], queue.Features{}, nil)
		if err != nil {
			g.t.Fatal(err)
		}
		a.Queues[i], g.queues[i] = q, q
	}
	a.Used = func(int) {
		select {
		case g.used <- struct{}{}:
		default:
		}
	}
	a.Changed = func() { g.changes <- struct{}{} }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, a) }()
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
			for _, i := range queues {
				g.states[i] = g.queues[i].State()
			}
		})
		return result
	}
	g.t.Cleanup(func() { stop() })
	return stop
}

// buffer is one descriptor.
type buffer struct {
	at    uint64
	n     uint32
	write bool
}

// submit makes one chain of the buffers available on queue i, at head 0, and kicks.
func (g *guest) submit(i int, chain ...buffer) {
	base := i * ringStep
	for k, b := range chain {
		d := g.ram[base+16*k:]
		binary.LittleEndian.PutUint64(d, b.at)
		binary.LittleEndian.PutUint32(d[8:], b.n)
		flags := uint16(0)
		if k < len(chain)-1 {
			flags |= 1
		}
		if b.write {
			flags |= 2
		}
		binary.LittleEndian.PutUint16(d[12:], flags)
		binary.LittleEndian.PutUint16(d[14:], uint16(k+1))
	}
	binary.LittleEndian.PutUint16(g.ram[base+0x4000+4+2*(int(g.avail[i])%queueSize):], 0)
	g.avail[i]++
	if err := g.mem.StoreUint16(guestmem.GPA(base+0x4002), g.avail[i]); err != nil {
		g.t.Fatal(err)
	}
	g.queues[i].Kick()
}

// wait waits until queue i has given one more chain back.
func (g *guest) wait(i int) {
	g.t.Helper()
	for {
		idx, err := g.mem.LoadUint16(guestmem.GPA(i*ringStep + 0x8002))
		if err != nil {
			g.t.Fatal(err)
		}
		if idx != g.seen[i] {
			g.seen[i]++
			return
		}
		select {
		case <-g.used:
		case <-time.After(patience):
			g.t.Fatalf("queue %d: no interrupt", i)
		}
	}
}

// send puts b into memory and submits it on queue i as one readable buffer, split in two.
func (g *guest) send(i int, b []byte) {
	copy(g.ram[bufferAt:], b)
	half := uint32(len(b) / 2)
	g.submit(i, buffer{bufferAt, half, false}, buffer{bufferAt + uint64(half), uint32(len(b)) - half, false})
}

func newDevice(t testing.TB, b Backend) *Device {
	t.Helper()
	d, err := New(Config{Backend: b, RAM: 3 * ramSize})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
