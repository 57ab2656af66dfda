package vsock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/vmm/api"
)

// roomy is the credit of a guest with plenty of room.
var roomy = credit{bufAlloc: 1 << 20}

func readAll(t testing.TB, c net.Conn, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c, p); err != nil {
		t.Fatalf("read: %v", err)
	}
	return p
}

func wantEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v, want EOF", n, err)
	}
}

func TestHostDialsGuest(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1024, roomy)
	if k.host < firstHostPort || k.host > lastHostPort {
		t.Errorf("host port %#x is out of range", k.host)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	p := g.expect(opReadWrite)
	if string(p.payload) != "hello" || p.srcPort != k.host || p.dstPort != k.guest || p.credit.bufAlloc != DefaultBuffer {
		t.Fatalf("packet %+v with %q", p.header, p.payload)
	}
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("world"))
	if got := readAll(t, c, 5); string(got) != "world" {
		t.Fatalf("read %q", got)
	}
	// The guest closes: the host reads EOF, the guest gets its confirmation.
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownBoth, credit: roomy}, nil)
	g.expect(opReset)
	wantEOF(t, c)
	g.alone(0)
}

func TestGuestDialsHost(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	g.send(header{srcPort: 77, dstPort: 2000, op: opRequest, credit: roomy}, nil)
	m := g.asked()
	if m.Op != api.BrokerRequest || m.GuestPort != 77 || m.HostPort != 2000 {
		t.Fatalf("asked %+v", m)
	}
	c, theirs := pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}, theirs)
	if p := g.expect(opResponse); p.srcPort != 2000 || p.dstPort != 77 {
		t.Fatalf("response %+v", p.header)
	}
	if _, err := c.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if p := g.expect(opReadWrite); string(p.payload) != "hi" {
		t.Fatalf("payload %q", p.payload)
	}
	// An answer is good once.
	_, theirs = pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}, theirs)
	g.tell(api.BrokerMessage{Op: api.BrokerRefuse, ID: m.ID}, -1)

	g.send(header{srcPort: 78, dstPort: 2001, op: opRequest, credit: roomy}, nil)
	g.tell(api.BrokerMessage{Op: api.BrokerRefuse, ID: g.asked().ID}, -1)
	if p := g.expect(opReset); p.srcPort != 2001 || p.dstPort != 78 {
		t.Fatalf("reset %+v", p.header)
	}
	g.alone(1)
}

func TestHalfCloses(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	t.Run("host sends no more", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		c.Write([]byte("last"))
		c.CloseWrite()
		if p := g.expect(opReadWrite); string(p.payload) != "last" {
			t.Fatalf("payload %q", p.payload)
		}
		if p := g.expect(opShutdown); p.flags != shutdownSend {
			t.Fatalf("flags %d, want %d", p.flags, shutdownSend)
		}
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("answer"))
		if got := readAll(t, c, 6); string(got) != "answer" {
			t.Fatalf("read %q", got)
		}
		c.Close()
		if p := g.expect(opShutdown); p.flags != shutdownBoth {
			t.Fatalf("flags %d, want %d", p.flags, shutdownBoth)
		}
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
		g.alone(0)
	})
	t.Run("host closes", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		c.Close()
		p := g.expect(opShutdown)
		if p.flags == shutdownSend { // seen half way
			p = g.expect(opShutdown)
		}
		if p.flags != shutdownBoth {
			t.Fatalf("flags %d, want %d", p.flags, shutdownBoth)
		}
		// What was under way is not a violation.
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("late"))
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
		g.alone(0)
		if n := g.dev.Counters()["violations"]; n != 0 {
			t.Errorf("%d violations", n)
		}
	})
	t.Run("host does not read", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		c.CloseRead()
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("vain"))
		if p := g.expect(opShutdown); p.flags != shutdownReceive {
			t.Fatalf("flags %d, want %d", p.flags, shutdownReceive)
		}
		c.Write([]byte("still"))
		if p := g.expect(opReadWrite); string(p.payload) != "still" {
			t.Fatalf("payload %q", p.payload)
		}
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
		wantEOF(t, c)
	})
	t.Run("guest sends no more", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("last"))
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownSend, credit: roomy}, nil)
		if got, err := io.ReadAll(c); err != nil || string(got) != "last" {
			t.Fatalf("read %q, %v", got, err)
		}
		c.Write([]byte("answer"))
		if p := g.expect(opReadWrite); string(p.payload) != "answer" {
			t.Fatalf("payload %q", p.payload)
		}
		c.Close()
		if p := g.expect(opShutdown); p.flags != shutdownBoth {
			t.Fatalf("flags %d, want %d", p.flags, shutdownBoth)
		}
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownBoth, credit: roomy}, nil)
		g.expect(opReset)
		g.alone(0)
	})
	t.Run("guest does not read", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownReceive, credit: roomy}, nil)
		g.settled()
		if _, err := c.Write([]byte("vain")); !errors.Is(err, unix.EPIPE) {
			t.Fatalf("write: %v, want %v", err, unix.EPIPE)
		}
		g.expect(opShutdown) // nothing more can come
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
		wantEOF(t, c)
		g.alone(0)
	})
}

// A guest that has closed is confirmed at once; what it sent last still reaches a slow host.
func TestGuestClosesBeforeHostHasRead(t *testing.T) {
	for _, how := range []header{{op: opShutdown, flags: shutdownBoth}, {op: opReset}} {
		g := newGuest(t, Config{})
		g.start()
		g.lend(8)
		c, k := g.dial(1, roomy)
		unix.SetsockoptInt(int(fdOf(t, c)), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
		want := bytes.Repeat([]byte("0123456789abcdef"), DefaultBuffer/16)
		for i := 0; i < len(want); i += 32 << 10 {
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, want[i:i+32<<10])
		}
		how.srcPort, how.dstPort, how.credit = k.guest, k.host, roomy
		g.send(how, nil)
		if how.op == opShutdown {
			for g.next().op != opReset {
			}
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes, %v, want %d", len(got), err, len(want))
		}
		g.alone(0)
	}
}

func fdOf(t testing.TB, c *net.UnixConn) (fd uintptr) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(p uintptr) { fd = p })
	return fd
}

func TestPauseKeepsConnections(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	for round := range 20 {
		if _, err := c.Write([]byte{byte(round)}); err != nil {
			t.Fatal(err)
		}
		if p := g.expect(opReadWrite); p.payload[0] != byte(round) {
			t.Fatalf("payload %v", p.payload)
		}
		g.stop()
		if g.runErr != nil {
			t.Fatal(g.runErr)
		}
		g.start()
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte{byte(round)})
		if got := readAll(t, c, 1); got[0] != byte(round) {
			t.Fatalf("read %v", got)
		}
	}
}

// An answer that the guest gave while the device stood is found by the transmit queue's owner at the moment the
// connections go on: each still gets one pump.
func TestAnswerWaitsForTheNextRun(t *testing.T) {
	const dials = 40
	g := newGuest(t, Config{})
	g.start()
	g.lend(ringSize - spareSlots)
	for range 5 {
		var conns []*net.UnixConn
		var keys []key
		for range dials {
			c, theirs := pair(t)
			g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
			conns, keys = append(conns, c), append(keys, key{guest: 1, host: g.expect(opRequest).srcPort})
		}
		g.stop()
		if g.runErr != nil {
			t.Fatal(g.runErr)
		}
		for _, k := range keys {
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opResponse, credit: roomy}, nil)
		}
		g.start()
		for i, c := range conns {
			if _, err := c.Write([]byte{7}); err != nil {
				t.Fatal(err)
			}
			g.expect(opReadWrite)
			g.send(header{srcPort: keys[i].guest, dstPort: keys[i].host, op: opReset, credit: roomy}, nil)
		}
		g.alone(0)
	}
}

func TestPauseKeepsBufferedBytes(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	want := bytes.Repeat([]byte("0123456789abcdef"), DefaultBuffer/16)
	for i := 0; i < len(want); i += 32 << 10 {
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, want[i:i+32<<10])
	}
	g.settled()
	g.stop()
	got := readAll(t, c, 1)
	g.start()
	got = append(got, readAll(t, c, len(want)-1)...)
	if !bytes.Equal(got, want) {
		t.Fatal("bytes were lost or changed")
	}
}

func TestResetDropsConnections(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	g.stop()
	g.renew()
	g.start()
	g.lend(8)
	wantEOF(t, c)
	g.alone(0)
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("?"))
	g.expect(opReset)
	g.dial(1, roomy)
}

// postEvents posts event buffers, all at once, one of them too short: it is given back empty.
func (g *guest) postEvents() {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.states[eventQueue]
	for i, n := range []uint32{3, 16, 16, 16} {
		g.describe(eventQueue, uint16(i), eventAt, n, flagWrite, 0)
		g.store16(s.Avail+4+2*guestmem.GPA(i), uint16(i))
		g.avail[eventQueue]++
	}
	g.store16(s.Avail+2, g.avail[eventQueue])
	g.kick(eventQueue)
}

func TestSnapshotResetsTransport(t *testing.T) {
	for _, early := range []bool{true, false} {
		testSnapshot(t, early)
	}
}

func testSnapshot(t *testing.T, early bool) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	g.settled()
	g.stop()
	state, err := g.dev.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	if g.connections() != 1 {
		t.Error("saving dropped a connection")
	}
	if err := g.dev.LoadState(state); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, c)
	if early { // as after a restore; else as a driver that is slow
		g.postEvents()
	}
	g.start()
	_, theirs := pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 5}, theirs)
	g.settled()
	g.alone(1)
	select {
	case p := <-g.packets:
		t.Fatalf("packet %+v before the event", p.header)
	default:
	}
	if !early {
		g.postEvents()
	}
	for told := false; !told; {
		select {
		case <-g.used[eventQueue]:
		case <-time.After(patience):
			t.Fatal("no event")
		}
		g.mu.Lock()
		for id, n, ok := g.nextUsed(eventQueue); ok; id, n, ok = g.nextUsed(eventQueue) {
			if told = told || n == eventSize; (id == 0) != (n == 0) {
				t.Errorf("event buffer %d came back with %d bytes", id, n)
			}
		}
		g.mu.Unlock()
	}
	g.settled()
	select {
	case p := <-g.packets:
		t.Fatalf("packet %+v before the driver has handled the event", p.header)
	default:
	}
	g.mu.Lock()
	g.offer(eventQueue, 1)
	g.mu.Unlock()
	if p := g.expect(opRequest); p.dstPort != 5 || p.srcPort == k.host {
		t.Fatalf("request %+v: the port of a dead connection, or another guest port", p.header)
	}
}

// A driver that does not post its event buffer again gets its packets all the same.
func TestSnapshotWithAnIdleDriver(t *testing.T) {
	g := newGuest(t, Config{Timeout: 2 * time.Second})
	if err := g.dev.LoadState([]byte(`{"next_port":1073741824}`)); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.lend(8)
	g.mu.Lock()
	g.describe(eventQueue, 1, eventAt, 16, flagWrite, 0)
	g.offer(eventQueue, 1)
	g.mu.Unlock()
	g.send(header{srcPort: 1, dstPort: 2, op: opCreditRequest}, nil)
	g.expect(opReset)
}

func TestLoadStateIsStrict(t *testing.T) {
	g := newGuest(t, Config{})
	for _, s := range []string{``, `{}`, `null`, `[]`, `{"next_port":1}`, `{"next_port":2147483648}`, `{"next_port":1073741824,"x":1}`,
		`{"next_port":1073741824}{}`, `{"next_port":-1}`, `{"next_port":1073741824` + string(bytes.Repeat([]byte(" "), 5000)) + `}`} {
		if err := g.dev.LoadState([]byte(s)); err == nil {
			t.Errorf("state %.40q was loaded", s)
		}
	}
	if err := g.dev.LoadState([]byte(`{"next_port":1073741824}`)); err != nil {
		t.Error(err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	g := newGuest(t, Config{Timeout: time.Millisecond})
	g.start()
	g.lend(8)
	c, theirs := pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
	g.expect(opRequest)
	wantEOF(t, c)
	g.expect(opReset)
	g.send(header{srcPort: 5, dstPort: 6, op: opRequest, credit: roomy}, nil)
	m := g.asked()
	g.expect(opReset)
	c, theirs = pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}, theirs) // too late
	wantEOF(t, c)
	g.alone(0)
	g.count("expired", 2)
}

func TestSupervisorGone(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	unix.Shutdown(g.broker, unix.SHUT_RDWR)
	g.send(header{srcPort: 5, dstPort: 6, op: opRequest, credit: roomy}, nil)
	g.expect(opReset)
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("x"))
	readAll(t, c, 1)
}

func TestConfigSpace(t *testing.T) {
	g := newGuest(t, Config{})
	p := bytes.Repeat([]byte{0xaa}, 16)
	g.dev.ReadConfig(p, 0)
	if want := append([]byte{guestCID}, make([]byte, 15)...); !bytes.Equal(p, want) {
		t.Errorf("config % x", p)
	}
	for _, off := range []uint32{1, 7, 8, 100, 0xffff_ffff} {
		p := bytes.Repeat([]byte{0xaa}, 4)
		g.dev.ReadConfig(p, off)
		if !bytes.Equal(p, make([]byte, 4)) {
			t.Errorf("config at %d: % x", off, p)
		}
	}
	g.dev.WriteConfig(p, 0)
}

func TestNewChecksConfig(t *testing.T) {
	for _, cfg := range []Config{{}, {CID: 2}, {CID: 0xffff_ffff}, {CID: 1 << 32}, {CID: 3, Connections: -1}, {CID: 3, Connections: MaxConnections + 1},
		{CID: 3, Buffer: 1}, {CID: 3, Buffer: MaxBuffer + 1}, {CID: 3, Timeout: -1}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cfg.Broker = w
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
		if _, err := r.Read(make([]byte, 1)); err != io.EOF { // the broker was taken over and closed
			t.Errorf("read: %v, want EOF", err)
		}
		r.Close()
	}
}
