package net

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/net/nettest"
	"spore/virtio/queue"
)

// The benchmarks measure the device with the least guest there can be, one that gives and takes buffers and looks at nothing, and the
// least network. Guest, device and network share this process and its processors.

const (
	benchRing    = 256
	benchRings   = 0x10000 // of each queue, 0x10000 apart
	benchBuffers = 1 << 20
	benchBuffer  = 4096
)

// lazy is a guest's driver of one queue.
type lazy struct {
	mem         *guestmem.Memory
	at          guestmem.GPA // of the rings
	kick        *os.File
	interrupted chan struct{}
	avail, used uint16
}

func (g *lazy) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (g *lazy) state() queue.State {
	return queue.State{Size: benchRing, Ready: true, Desc: g.at, Avail: g.at + 0x4000, Used: g.at + 0x8000}
}

// describe gives a descriptor its buffer, whose content stays what it is.
func (g *lazy) describe(i uint16, n uint32, flags uint16) {
	g.must(g.mem.StoreUint64(g.at+16*guestmem.GPA(i), uint64(benchBuffers+benchBuffer*guestmem.GPA(i))))
	g.must(g.mem.StoreUint64(g.at+16*guestmem.GPA(i)+8, uint64(n)|uint64(flags)<<32))
}

// submit makes n more descriptors available, in order, and kicks if the device asks for it.
func (g *lazy) submit(n uint16) {
	old := g.avail
	for range n {
		g.must(g.mem.StoreUint16(g.at+0x4004+2*guestmem.GPA(g.avail%benchRing), g.avail%benchRing))
		g.avail++
	}
	g.must(g.mem.StoreUint16(g.at+0x4002, g.avail))
	event, err := g.mem.LoadUint16(g.at + 0x8004 + 8*benchRing)
	if g.must(err); g.avail-event-1 < g.avail-old {
		if _, err := g.kick.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			panic(err)
		}
	}
}

// take returns how many descriptors have come back, waiting until there are some.
func (g *lazy) take() uint16 {
	for {
		now, err := g.mem.LoadUint16(g.at + 0x8002)
		g.must(err)
		if n := now - g.used; n > 0 {
			g.used = now
			return n
		}
		g.must(g.mem.StoreUint16(g.at+0x4004+2*benchRing, g.used)) // used_event
		if now, err = g.mem.LoadUint16(g.at + 0x8002); now == g.used && err == nil {
			<-g.interrupted
		}
	}
}

// bench runs a device and returns the two queues' drivers.
func bench(b *testing.B, cfg Config) (rx, tx *lazy, tap *nettest.Tap) {
	host, err := guestmem.MapAnon(8 << 20)
	if err != nil {
		b.Fatal(err)
	}
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		b.Fatal(err)
	}
	d, tap := newDevice(b, cfg)
	var guests [2]*lazy
	a := virtio.Active{Features: d.Features(), Mem: mem, Changed: func() {}, Kicks: func(q int) *os.File { return guests[q].kick }}
	for i := range guests {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			b.Fatal(err)
		}
		g := &lazy{mem: mem, at: benchRings * guestmem.GPA(i+1), kick: os.NewFile(uintptr(fd), "kick"), interrupted: make(chan struct{}, 1)}
		q, err := queue.New(mem, g.state(), queue.Features{EventIdx: true, Indirect: true}, nil)
		if err != nil {
			b.Fatal(err)
		}
		guests[i], a.Queues = g, append(a.Queues, q)
	}
	a.Used = func(q int) {
		select {
		case guests[q].interrupted <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx, a) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		for _, g := range guests {
			g.kick.Close()
		}
		guestmem.Unmap(host)
	})
	return guests[0], guests[1], tap
}

// sizes of frames: those of small packets, of full ones, and of large segments.
var sizes = map[string]int{"64": 64, "1514": 1514, "64K": 65226}

func BenchmarkTransmit(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			_, tx, tap := bench(b, Config{Offload: true, MTU: 1500})
			head := plain
			if size > 1514 {
				head = hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16)
			}
			for i := range uint16(benchRing) {
				tx.must(tx.mem.WriteAt(with(head, nil), benchBuffers+benchBuffer*guestmem.GPA(i)))
				tx.describe(i, uint32(headerSize+size), 0) // a large one reaches into the others' buffers
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range b.N {
					tap.Receive()
				}
			}()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			free := uint16(benchRing)
			for left := b.N; left > 0; {
				n := min(free, uint16(min(left, 32)))
				tx.submit(n)
				left -= int(n)
				if free -= n; free == 0 {
					free += tx.take()
				}
			}
			<-done
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

func BenchmarkReceive(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			rx, _, tap := bench(b, Config{Offload: true, MTU: 1500})
			for i := range uint16(benchRing) {
				rx.describe(i, benchBuffer, 2)
			}
			rx.submit(benchRing)
			packet := with(plain, frame(size, 0))
			if size > 1514 {
				packet = with(hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), frame(size, 0))
			}
			per := (len(packet) + benchBuffer - 1) / benchBuffer
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				for range b.N {
					tap.Send(packet, nil)
				}
			}()
			for left := b.N * per; left > 0; {
				n := rx.take()
				rx.submit(n)
				left -= int(n)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}
