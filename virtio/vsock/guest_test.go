package vsock

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
	"spore/vmm/api"
)

// patience is how long anything in a test may take before it counts as stuck.
const patience = 3 * time.Minute

const (
	guestCID   = 3
	ringSize   = 64 // descriptors of each queue of the tests' driver
	bufferSize = headerSize + 4096
	slotSize   = 128 << 10 // of a transmit buffer
	spareSlots = 8         // descriptors at the end of the transmit queue that tests use by hand
)

// guest is a driver for the device, in Go over guest memory, and a supervisor at the other end of the broker socket.
type guest struct {
	t      testing.TB
	mem    *guestmem.Memory
	dev    *Device
	broker int // the supervisor's end
	kicks  [3]*os.File
	states [3]queue.State
	used   [3]chan struct{} // capacity 1

	packets chan packet // what the device sent, if nobody else takes it

	mu      sync.Mutex
	take    map[key]func(packet) // by connection; called with no lock held
	avail   [3]uint16
	seen    [3]uint16     // of the used ring
	slots   chan uint16   // free transmit descriptors
	running chan struct{} // closed when Run has returned
	runErr  error
	cancel  context.CancelFunc
	reapers sync.WaitGroup
	lent    int // receive buffers posted
}

type packet struct {
	header
	payload []byte
}

const (
	ringsAt   = 0x1000
	ringBytes = 0x2000 // descriptors 0x400, available 0x800, used 0x1000 within
	receiveAt = 0x10000
	sendAt    = 0x100000
	eventAt   = 0x8000
)

func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	host, err := guestmem.MapAnon(sendAt + ringSize*slotSize)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cfg.CID, cfg.Broker = guestCID, os.NewFile(uintptr(pair[0]), "broker")
	dev, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, mem: mem, dev: dev, broker: pair[1], packets: make(chan packet, 4096), take: map[key]func(packet){}}
	for i := range g.used {
		g.used[i] = make(chan struct{}, 1)
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		g.kicks[i] = os.NewFile(uintptr(fd), "kick")
	}
	g.renew()
	t.Cleanup(func() {
		g.stop()
		dev.Close()
		unix.Close(g.broker)
		for _, k := range g.kicks {
			k.Close()
		}
		guestmem.Unmap(host)
	})
	return g
}

// renew is a driver that starts afresh: rings empty, indexes 0.
func (g *guest) renew() {
	rings, err := g.mem.Slice(ringsAt, 3*ringBytes)
	if err != nil {
		g.t.Fatal(err)
	}
	clear(rings)
	g.slots = make(chan uint16, ringSize)
	for i := range uint16(ringSize - spareSlots) {
		g.slots <- i
	}
	for i := range g.states {
		at := guestmem.GPA(ringsAt + i*ringBytes)
		g.states[i] = queue.State{Size: ringSize, Ready: true, Desc: at, Avail: at + 0x800, Used: at + 0x1000}
		g.avail[i], g.seen[i] = 0, 0
	}
	g.lent = 0
}

// start runs the device.
func (g *guest) start() {
	g.t.Helper()
	var qs []*queue.Queue
	for i := range g.states {
		q, err := queue.New(g.mem, g.states[i], queue.Features{}, g.kicks[i])
		if err != nil {
			g.t.Fatal(err)
		}
		qs = append(qs, q)
	}
	ctx, cancel := context.WithCancel(context.Background())
	running := make(chan struct{})
	g.cancel, g.running = cancel, running
	a := virtio.Active{Mem: g.mem, Queues: qs, Used: func(i int) {
		select {
		case g.used[i] <- struct{}{}:
		default:
		}
	}, Changed: func() {}}
	for i, f := range []func(){g.reap, g.reapSent} {
		g.reapers.Go(func() {
			for {
				select {
				case <-g.used[i]:
					f()
				case <-running:
					f()
					return
				}
			}
		})
	}
	go func() {
		err := g.dev.Run(ctx, a)
		g.mu.Lock()
		g.runErr = err
		for i := range qs {
			g.states[i] = qs[i].State()
		}
		g.mu.Unlock()
		close(running)
	}()
}

// stop ends Run and waits for it.
func (g *guest) stop() {
	if g.cancel == nil {
		return
	}
	g.cancel()
	select {
	case <-g.running:
	case <-time.After(patience):
		g.t.Fatal("Run does not return")
	}
	g.reapers.Wait()
}

func (g *guest) store16(a guestmem.GPA, v uint16) {
	if err := g.mem.StoreUint16(a, v); err != nil {
		g.t.Error(err)
	}
}

func (g *guest) load16(a guestmem.GPA) uint16 {
	v, err := g.mem.LoadUint16(a)
	if err != nil {
		g.t.Error(err)
	}
	return v
}

const (
	flagNext  = 1
	flagWrite = 2
)

func (g *guest) describe(q int, i uint16, a guestmem.GPA, n uint32, flags, next uint16) {
	var d [16]byte
	binary.LittleEndian.PutUint64(d[0:], uint64(a))
	binary.LittleEndian.PutUint32(d[8:], n)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
	if err := g.mem.WriteAt(d[:], g.states[q].Desc+16*guestmem.GPA(i)); err != nil {
		g.t.Error(err)
	}
}

// offer makes a head available and kicks. Called with mu held.
func (g *guest) offer(q int, head uint16) {
	s := g.states[q]
	g.store16(s.Avail+4+2*guestmem.GPA(g.avail[q]%ringSize), head)
	g.avail[q]++
	g.store16(s.Avail+2, g.avail[q])
	g.kick(q)
}

func (g *guest) kick(q int) {
	var one [8]byte
	one[0] = 1
	g.kicks[q].Write(one[:])
}

// lend posts n more receive buffers.
func (g *guest) lend(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		i := uint16(g.lent)
		g.lent++
		g.describe(receiveQueue, i, receiveAt+bufferSize*guestmem.GPA(i), bufferSize, flagWrite, 0)
		g.offer(receiveQueue, i)
	}
}

// nextUsed takes an element off a used ring. Called with mu held.
func (g *guest) nextUsed(q int) (id, n uint32, ok bool) {
	s := g.states[q]
	if g.load16(s.Used+2) == g.seen[q] {
		return 0, 0, false
	}
	var e [8]byte
	if err := g.mem.ReadAt(e[:], s.Used+4+8*guestmem.GPA(g.seen[q]%ringSize)); err != nil {
		g.t.Error(err)
	}
	g.seen[q]++
	return binary.LittleEndian.Uint32(e[0:]), binary.LittleEndian.Uint32(e[4:]), true
}

// reap takes what the device sent and posts the buffers again.
func (g *guest) reap() {
	for {
		g.mu.Lock()
		id, n, ok := g.nextUsed(receiveQueue)
		if !ok {
			g.mu.Unlock()
			return
		}
		p := make([]byte, n)
		if err := g.mem.ReadAt(p, receiveAt+bufferSize*guestmem.GPA(id)); err != nil {
			g.t.Error(err)
		}
		g.offer(receiveQueue, uint16(id))
		if n < headerSize {
			g.mu.Unlock()
			continue // given back at the end of a Run
		}
		h := parseHeader((*[headerSize]byte)(p))
		take := g.take[key{guest: h.dstPort, host: h.srcPort}]
		g.mu.Unlock()
		if int(h.length) != len(p)-headerSize || h.srcCID != HostCID && h.op != opReset || h.dstCID != guestCID {
			g.t.Errorf("packet %+v in %d bytes", h, n)
		}
		if pkt := (packet{h, p[headerSize:]}); take != nil {
			take(pkt)
		} else {
			g.packets <- pkt
		}
	}
}

// reapSent takes back what the device has handled.
func (g *guest) reapSent() {
	for {
		g.mu.Lock()
		id, n, ok := g.nextUsed(transmitQueue)
		g.mu.Unlock()
		if !ok {
			return
		}
		if n != 0 {
			g.t.Errorf("a sent packet came back with %d bytes written", n)
		}
		if id < ringSize-spareSlots {
			g.slots <- uint16(id)
		}
	}
}

// sendRaw sends p as a packet.
func (g *guest) sendRaw(p []byte) {
	i := <-g.slots
	g.mu.Lock()
	defer g.mu.Unlock()
	a := sendAt + slotSize*guestmem.GPA(i)
	if err := g.mem.WriteAt(p, a); err != nil {
		g.t.Error(err)
	}
	g.describe(transmitQueue, i, a, uint32(len(p)), 0, 0)
	g.offer(transmitQueue, i)
}

// send sends a packet; what h leaves out of addresses and type is filled in.
func (g *guest) send(h header, payload []byte) {
	h.srcCID, h.dstCID, h.kind = guestCID, HostCID, typeStream
	if h.length == 0 {
		h.length = uint32(len(payload))
	}
	g.sendHeader(h, payload)
}

func (g *guest) sendHeader(h header, payload []byte) {
	var b [headerSize]byte
	h.put(&b)
	g.sendRaw(append(b[:], payload...))
}

// next is the device's next packet that no connection takes.
func (g *guest) next() packet {
	g.t.Helper()
	select {
	case p := <-g.packets:
		return p
	case <-time.After(patience):
		g.t.Fatal("no packet")
		return packet{}
	}
}

// expect is next, which must be op.
func (g *guest) expect(op operation) packet {
	g.t.Helper()
	p := g.next()
	if p.op != op {
		g.t.Fatalf("packet %+v, want operation %d", p.header, op)
	}
	return p
}

// pair makes two connected sockets, one to hand over.
func pair(t testing.TB) (*net.UnixConn, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "host")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UnixConn), fds[1]
}

// tell sends a message of the supervisor's with a descriptor, or -1.
func (g *guest) tell(m api.BrokerMessage, fd int) {
	g.t.Helper()
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
		defer unix.Close(fd)
	}
	if err := unix.Sendmsg(g.broker, m.AppendTo(nil), oob, nil, 0); err != nil {
		g.t.Fatal(err)
	}
}

// asked is the device's next message to the supervisor.
func (g *guest) asked() api.BrokerMessage {
	g.t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(g.broker), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
		g.t.Fatalf("poll: %d, %v", n, err)
	}
	p := make([]byte, 64)
	n, err := unix.Read(g.broker, p)
	if err != nil {
		g.t.Fatal(err)
	}
	m, err := api.ParseBrokerMessage(p[:n])
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

// dial connects the host to a guest port by hand: the guest's packets are the caller's to send and expect.
func (g *guest) dial(port Port, own credit) (*net.UnixConn, key) {
	g.t.Helper()
	c, theirs := pair(g.t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: uint32(port)}, theirs)
	p := g.expect(opRequest)
	if p.dstPort != port {
		g.t.Fatalf("request for port %d, want %d", p.dstPort, port)
	}
	k := key{guest: port, host: p.srcPort}
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opResponse, credit: own}, nil)
	return c, k
}

// count waits until a counter has at least a value.
func (g *guest) count(name string, want uint64) {
	g.t.Helper()
	for end := time.Now().Add(patience); g.dev.Counters()[name] < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("counter %s is %d, want %d", name, g.dev.Counters()[name], want)
		}
	}
}

// settled waits until every packet sent so far was handled: the device works on them in order.
func (g *guest) settled() {
	g.t.Helper()
	n := g.dev.Counters()["forged"]
	g.sendHeader(header{srcCID: 99}, nil)
	g.count("forged", n+1)
}

// connections is how many connections the device holds.
func (g *guest) connections() int { return g.dev.table.size() }

// alone waits until the device holds n connections.
func (g *guest) alone(n int) {
	g.t.Helper()
	for end := time.Now().Add(patience); g.connections() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%d connections, want %d", g.connections(), n)
		}
	}
}
