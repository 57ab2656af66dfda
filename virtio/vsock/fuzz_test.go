package vsock

import (
	"context"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio/queue"
	"spore/vmm/api"
)

// world is a device without goroutines: the input of a fuzz execution says what happens next, on which side.
type world struct {
	t      testing.TB
	in     []byte
	d      *Device
	mem    *guestmem.Memory
	q      *queue.Queue
	peer   int // the supervisor's end of the broker socket
	posted uint16
	free   []uint16 // receive descriptors
	seen   uint16
	hosts  map[*conn]int // the host's ends
	asked  []uint32
	bytes  [2 * fuzzCredit]byte
}

const (
	fuzzRing    = 16
	fuzzBuffers = 0x2000
	fuzzBuffer  = 0x400 // bytes of a receive buffer
	fuzzLimit   = 6     // connections
	fuzzCredit  = 2048  // bytes that the guest may be ahead; small, for speed
)

// some is n bytes, at most twice fuzzCredit; the same ones every time.
func (w *world) some(n int) []byte { return w.bytes[:n] }

func (w *world) byte() byte {
	if len(w.in) == 0 {
		return 0
	}
	b := w.in[0]
	w.in = w.in[1:]
	return b
}

func (w *world) uint16() uint16 { return uint16(w.byte()) | uint16(w.byte())<<8 }

// pick is a connection that there is, or nil.
func (w *world) pick() *conn {
	list := w.d.table.list()
	if len(list) == 0 {
		w.byte()
		return nil
	}
	return list[int(w.byte())%len(list)]
}

// number is one that a guest would try: small, near what is, or from the ends of the range.
func (w *world) number(near uint32) uint32 {
	switch w.byte() % 6 {
	case 0:
		return near
	case 1:
		return near + uint32(w.byte())
	case 2:
		return near - uint32(w.byte())
	case 3:
		return uint32(w.uint16())
	case 4:
		return 0xffff_ffff - uint32(w.byte())
	}
	return binary.LittleEndian.Uint32([]byte{w.byte(), w.byte(), w.byte(), w.byte()})
}

// guestPacket is a packet that is wrong in few places, or in none.
func (w *world) guestPacket() {
	h := header{srcCID: guestCID, dstCID: HostCID, srcPort: Port(w.byte() % 4), dstPort: Port(w.byte() % 4), kind: typeStream}
	h.op = operation(w.byte() % 9)
	if c := w.pick(); c != nil && w.byte()%8 != 0 {
		h.srcPort, h.dstPort = c.key.guest, c.key.host
		h.credit = credit{w.number(4096), w.number(c.out.acked)}
	} else {
		h.credit = credit{w.number(4096), w.number(0)}
	}
	h.flags = uint32(w.byte() % 8)
	payload := w.some(int(w.uint16()) % (fuzzCredit * 5 / 4))
	h.length = uint32(len(payload))
	switch w.byte() {
	case 1:
		h.length = w.number(h.length)
	case 2:
		h.srcCID = CID(w.uint16())
	case 3:
		h.dstCID = CID(w.uint16())
	case 4:
		h.kind = w.uint16()
	case 5:
		h.op = operation(w.uint16())
	}
	w.packet(h, payload)
}

func (w *world) packet(h header, payload []byte) {
	var b [headerSize]byte
	h.put(&b)
	h = parseHeader(&b)
	cut := 0
	if len(payload) > 0 {
		cut = int(w.byte()) % len(payload)
	}
	pieces, n := split([][]byte{b[:20], b[20:], payload[:cut], payload[cut:]}, headerSize, nil, uint64(h.length), queue.LimitSize)
	w.d.dispatch(h, pieces, n)
}

func (w *world) rawPacket() {
	var b [headerSize]byte
	w.in = w.in[copy(b[:], w.in):]
	w.packet(parseHeader(&b), w.some(int(w.byte())))
}

func (w *world) pair() (ours, theirs int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, fd := range fds { // the least there is, so that it is full at times
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 0)
	}
	return fds[0], fds[1]
}

// keep remembers the host's end of the connection that fd became, if it became one.
func (w *world) keep(ours int, before map[*conn]bool) {
	for _, c := range w.d.table.list() {
		if _, known := w.hosts[c]; !known && (!before[c] || c.state == open) && c.sock.file != nil {
			w.hosts[c] = ours
			return
		}
	}
	unix.Close(ours)
}

func (w *world) known() map[*conn]bool {
	m := map[*conn]bool{}
	for _, c := range w.d.table.list() {
		m[c] = true
	}
	return m
}

func (w *world) dial() {
	before := w.known()
	ours, theirs := w.pair()
	w.d.dial(Port(w.byte()%4), theirs)
	w.keep(ours, before)
}

// answer lets the supervisor answer what it was asked, or something else.
func (w *world) answer() {
	var p [api.BrokerMessageSize]byte
	for {
		if n, err := unix.Read(w.peer, p[:]); n <= 0 || err != nil {
			break
		}
		m, err := api.ParseBrokerMessage(p[:])
		if err != nil || m.Op != api.BrokerRequest {
			w.t.Fatalf("the supervisor was sent %x: %v", p, err)
		}
		w.asked = append(w.asked, m.ID)
	}
	id := uint32(w.byte())
	if len(w.asked) > 0 {
		i := int(id) % len(w.asked)
		id = w.asked[i]
		w.asked = append(w.asked[:i], w.asked[i+1:]...)
	}
	if w.byte()%4 == 0 {
		if c := w.d.table.answer(id); c != nil {
			w.d.end(c, endReset)
		}
		return
	}
	before := w.known()
	ours, theirs := w.pair()
	w.d.accept(id, theirs)
	w.keep(ours, before)
}

// host lets the host do something with its end of a connection.
func (w *world) host() {
	fd, ok := w.hosts[w.pick()]
	if !ok {
		return
	}
	p := w.some(int(w.uint16()) % (2 * fuzzCredit))
	switch w.byte() % 6 {
	case 0, 1:
		unix.Write(fd, p)
	case 2, 3:
		unix.Read(fd, p)
	case 4:
		unix.Shutdown(fd, int(w.byte()%3))
	case 5:
		unix.Shutdown(fd, unix.SHUT_RDWR)
	}
}

// move does what a connection's goroutines would do next.
func (w *world) move() {
	c := w.pick()
	if c == nil || c.sock.file == nil || c.ended {
		return
	}
	w.d.limitTime(c)
	fd := -1
	c.sock.raw.Control(func(p uintptr) { fd = int(p) })
	if w.byte()%2 == 0 {
		var pieces [2][]byte
		e, _, _ := c.flushSome(fd, pieces[:0])
		w.d.do(c, e)
		if c.state == draining && c.buf.len() == 0 {
			w.d.end(c, endSilently)
		}
		return
	}
	if c.state != open {
		return
	}
	free, sent := c.out.free(), c.out.sent
	s := w.d.rx.deliver(c, fd)
	if n := c.out.sent - sent; n > free {
		w.t.Fatalf("%d bytes sent with credit for %d", n, free)
	}
	switch s {
	case ended:
		flags := uint32(shutdownSend)
		if deaf(fd) {
			flags = shutdownBoth
		}
		c.mu.Lock()
		e := c.hostFinished(flags)
		c.mu.Unlock()
		w.d.do(c, e)
	case failed:
		w.d.end(c, endReset)
	}
}

// post gives the device receive buffers and takes what it sent.
func (w *world) post() {
	s := w.q.State()
	for n := w.byte() % 8; n > 0 && len(w.free) > 0; n-- {
		i := w.free[0]
		w.free = w.free[1:]
		size := uint32(fuzzBuffer)
		if w.byte()%8 == 0 {
			size = uint32(w.byte())
		}
		var d [16]byte
		binary.LittleEndian.PutUint64(d[0:], uint64(fuzzBuffers+fuzzBuffer*guestmem.GPA(i)))
		binary.LittleEndian.PutUint32(d[8:], size)
		binary.LittleEndian.PutUint16(d[12:], flagWrite)
		w.mem.WriteAt(d[:], s.Desc+16*guestmem.GPA(i))
		w.mem.StoreUint16(s.Avail+4+2*guestmem.GPA(w.posted%fuzzRing), i)
		w.posted++
		w.mem.StoreUint16(s.Avail+2, w.posted)
	}
	w.d.rx.kicked()
	for idx, _ := w.mem.LoadUint16(s.Used + 2); w.seen != idx; w.seen++ {
		var e [8]byte
		w.mem.ReadAt(e[:], s.Used+4+8*guestmem.GPA(w.seen%fuzzRing))
		n := binary.LittleEndian.Uint32(e[4:])
		w.free = append(w.free, uint16(binary.LittleEndian.Uint32(e[:])))
		if n == 0 {
			continue
		}
		var b [headerSize]byte
		w.mem.ReadAt(b[:], fuzzBuffers+fuzzBuffer*guestmem.GPA(binary.LittleEndian.Uint32(e[:])))
		if h := parseHeader(&b); h.length != n-headerSize || h.op == opInvalid || h.op > opCreditRequest || h.dstCID != guestCID {
			w.t.Fatalf("packet %+v in %d bytes", h, n)
		}
	}
}

// check holds the device to its bounds.
func (w *world) check() {
	list := w.d.table.list()
	if len(list) > fuzzLimit || len(w.d.table.byKey) > len(list) || len(w.d.table.byID) > len(list) {
		w.t.Fatalf("%d connections, %d names, %d ids", len(list), len(w.d.table.byKey), len(w.d.table.byID))
	}
	r := w.d.rx
	if len(r.control) > len(list) || len(r.waiting) > len(list) || len(r.replies) > lostReplies || len(r.spare) > maxBatch {
		w.t.Fatalf("%d owe, %d wait, %d replies, %d spare", len(r.control), len(r.waiting), len(r.replies), len(r.spare))
	}
	for _, c := range list {
		if c.in.held() > c.in.size || c.buf.len() != int(c.in.held()) || len(c.buf.ring) > int(c.in.size) {
			w.t.Fatalf("%d bytes held, %d in a buffer of %d, credit %d", c.in.held(), c.buf.len(), len(c.buf.ring), c.in.size)
		}
		if c.out.free() > c.out.alloc {
			w.t.Fatalf("credit %+v", c.out)
		}
		for c.users > 0 { // what would have been started
			c.leave()
		}
		c.flushing = false
	}
	for c, fd := range w.hosts {
		if c.state == gone {
			unix.Close(fd)
			delete(w.hosts, c)
			for c.users > 0 {
				c.leave()
			}
		}
	}
}

func FuzzVsockPacket(f *testing.F) {
	host, err := guestmem.MapAnon(fuzzBuffers + fuzzRing*fuzzBuffer)
	if err != nil {
		f.Fatal(err)
	}
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		f.Fatal(err)
	}
	broker, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		f.Fatal(err)
	}
	ours, err := newSocket(broker[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		clear(host)
		d, err := New(Config{CID: guestCID, Connections: fuzzLimit})
		if err != nil {
			t.Fatal(err)
		}
		d.buffer, d.broker, d.spawn = fuzzCredit, ours, func(func(context.Context)) {}
		q, err := queue.New(mem, queue.State{Size: fuzzRing, Ready: true, Avail: 0x400, Used: 0x800}, queue.Features{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, in: in, d: d, mem: mem, q: q, peer: broker[1], hosts: map[*conn]int{}}
		for i := range uint16(fuzzRing) {
			w.free = append(w.free, i)
		}
		d.rx.begin(context.Background(), q, false, func() {}, func(err error) { t.Fatal(err) })
		acts := []func(){w.guestPacket, w.guestPacket, w.guestPacket, w.rawPacket, w.dial, w.answer, w.host, w.host, w.move, w.move, w.move, w.post, w.post}
		for n := 0; len(w.in) > 0 && n < 100; n++ {
			acts[int(w.byte())%len(acts)]()
			w.check()
		}
		d.rx.end()
		d.Reset()
		w.check()
		if len(w.hosts) != 0 || len(d.table.list()) != 0 {
			t.Fatalf("%d connections left", len(w.hosts))
		}
		for p := (make([]byte, 64)); ; {
			if _, err := unix.Read(broker[1], p); err != nil {
				break
			}
		}
	})
}
