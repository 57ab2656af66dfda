package vsock

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/vmm/api"
)

// VS-01: a packet whose length is more than its chain holds, or whose header is not all there, moves no byte.
func TestVS01Lengths(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	for n := range headerSize {
		g.sendRaw(make([]byte, n))
	}
	g.count("malformed", headerSize)

	c, k := g.dial(1, roomy)
	rw := header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}
	rw.length = 3
	g.send(rw, []byte("abcdef")) // more in the chain than in the packet
	if got := readAll(t, c, 3); string(got) != "abc" {
		t.Fatalf("read %q", got)
	}
	// One whose header and payload are spread over the chain's buffers.
	g.mu.Lock()
	h := rw
	h.srcCID, h.dstCID, h.kind, h.length = guestCID, HostCID, typeStream, 5
	var b [headerSize]byte
	h.put(&b)
	if err := g.mem.WriteAt(append(b[:], "hello"...), eventAt); err != nil {
		t.Fatal(err)
	}
	at := guestmem.GPA(eventAt)
	for i, n := range []uint32{1, 0, 42, 3, 3} {
		flags := uint16(flagNext)
		if i == 4 {
			flags = 0
		}
		g.describe(transmitQueue, uint16(ringSize-5+i), at, n, flags, uint16(ringSize-4+i))
		at += guestmem.GPA(n)
	}
	g.offer(transmitQueue, ringSize-5)
	g.mu.Unlock()
	if got := readAll(t, c, 5); string(got) != "hello" {
		t.Fatalf("read %q", got)
	}
	for _, length := range []uint32{7, 1 << 20, 0xffff_ffff} {
		rw.length = length
		g.send(rw, []byte("abcdef"))
		p := g.expect(opReset)
		if p.dstPort != rw.srcPort {
			t.Fatalf("reset %+v", p.header)
		}
		wantEOF(t, c)
		c, k = g.dial(1, roomy)
		rw.srcPort, rw.dstPort = k.guest, k.host
	}
}

// VS-02: forged addresses reach nobody.
func TestVS02Addresses(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, roomy)
	good := header{srcCID: guestCID, dstCID: HostCID, srcPort: k.guest, dstPort: k.host, kind: typeStream, op: opReadWrite, credit: roomy}
	for i, cid := range []CID{0, 1, 2, guestCID + 1, 0xffff_ffff, guestCID | 1<<32, 1<<64 - 1} {
		h := good
		h.srcCID = cid
		g.sendHeader(h, []byte("x"))
		g.count("forged", uint64(i+1))
	}
	for _, cid := range []CID{0, 1, guestCID, guestCID + 1, 0xffff_ffff, HostCID | 1<<32, 1<<64 - 1} {
		h := good
		h.dstCID, h.op = cid, opRequest
		g.sendHeader(h, nil)
		if p := g.expect(opReset); p.srcCID != cid || p.dstPort != k.guest || p.srcPort != k.host {
			t.Fatalf("answer %+v", p.header)
		}
	}
	h := good
	h.kind = 2
	g.sendHeader(h, []byte("x"))
	if p := g.expect(opReset); p.kind != 2 {
		t.Fatalf("answer %+v", p.header)
	}
	good.length = 2
	g.sendHeader(good, []byte("ok"))
	if got := readAll(t, c, 2); string(got) != "ok" {
		t.Fatalf("read %q", got)
	}
}

// A packet that its connection's state does not allow ends the connection, and no other.
func TestPacketsOutOfPlace(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	other, ok := g.dial(99, roomy)
	dialling := func() (*net.UnixConn, key) {
		c, theirs := pair(t)
		g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
		p := g.expect(opRequest)
		return c, key{guest: p.dstPort, host: p.srcPort}
	}
	asking := func() (*net.UnixConn, key) {
		g.send(header{srcPort: 5, dstPort: 6, op: opRequest, credit: roomy}, nil)
		g.asked()
		return nil, key{guest: 5, host: 6}
	}
	open := func() (*net.UnixConn, key) { return g.dial(1, roomy) }
	for _, tt := range []struct {
		name  string
		begin func() (*net.UnixConn, key)
		h     header
	}{
		{"bytes before the response", dialling, header{op: opReadWrite}},
		{"shutdown before the response", dialling, header{op: opShutdown, flags: shutdownBoth}},
		{"request for one that was requested", dialling, header{op: opRequest}},
		{"bytes before the answer", asking, header{op: opReadWrite}},
		{"request twice", asking, header{op: opRequest}},
		{"response to its own request", asking, header{op: opResponse}},
		{"response twice", open, header{op: opResponse}},
		{"request for an open one", open, header{op: opRequest}},
		{"operation 0", open, header{op: 0}},
		{"operation 9", open, header{op: 9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := g.dev.Counters()["violations"]
			c, k := tt.begin()
			h := tt.h
			h.srcPort, h.dstPort, h.credit = k.guest, k.host, roomy
			g.send(h, nil)
			g.expect(opReset)
			if c != nil {
				wantEOF(t, c)
			}
			g.count("violations", before+1)
			g.alone(1)
		})
	}
	t.Run("bytes after the end", func(t *testing.T) {
		c, k := g.dial(1, roomy)
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownSend, credit: roomy}, nil)
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("x"))
		g.expect(opReset)
		wantEOF(t, c)
	})
	t.Run("no connection", func(t *testing.T) {
		for _, op := range []operation{opResponse, opShutdown, opReadWrite, opCreditUpdate, opCreditRequest} {
			g.send(header{srcPort: 11, dstPort: 12, op: op}, nil)
			g.expect(opReset)
		}
		g.send(header{srcPort: 11, dstPort: 12, op: opReset}, nil) // never answered
	})
	g.send(header{srcPort: ok.guest, dstPort: ok.host, op: opReadWrite, credit: roomy}, []byte("fine"))
	if got := readAll(t, other, 4); string(got) != "fine" {
		t.Fatalf("read %q", got)
	}
}

// VS-03: the device sends what the guest has room for and no more, whatever it says in between.
func TestVS03Credit(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(16)
	c, k := g.dial(1, credit{bufAlloc: 10})
	say := func(n credit) { g.send(header{srcPort: k.guest, dstPort: k.host, op: opCreditUpdate, credit: n}, nil) }
	sent := bytes.Repeat([]byte("x"), 1000)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	take := func(want int) {
		t.Helper()
		for want > 0 {
			p := g.next()
			switch p.op {
			case opReadWrite:
				if want -= len(p.payload); want < 0 {
					t.Fatalf("%d bytes beyond the credit", -want)
				}
			case opCreditRequest:
			default:
				t.Fatalf("packet %+v", p.header)
			}
		}
	}
	quiet := func() {
		t.Helper()
		g.settled()
		g.settled()
		for {
			select {
			case p := <-g.packets:
				if p.op != opCreditRequest {
					t.Fatalf("packet %+v without credit", p.header)
				}
			default:
				return
			}
		}
	}
	take(10)
	quiet()
	for _, n := range []credit{{10, 11}, {10, 0xffff_ffff}, {5, 0}, {0, 10}, {0, 0}} {
		say(n)
		quiet()
	}
	say(credit{15, 10})
	take(15)
	say(credit{25, 10}) // 15 under way
	take(10)
	quiet()
	say(credit{0xffff_ffff, 35})
	take(1000 - 35)
	if n := g.dev.Counters()["implausible"]; n == 0 {
		t.Error("no fwd_cnt was found implausible")
	}
	if n := g.dev.Counters()["to_guest"]; n != 1000 {
		t.Errorf("%d bytes to the guest, want 1000", n)
	}
}

// VS-03: the device asks a guest that forgets to tell of its room.
func TestCreditRequests(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(8)
	c, k := g.dial(1, credit{bufAlloc: 4})
	c.Write([]byte("12345"))
	g.expect(opReadWrite)
	g.expect(opCreditRequest)
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opCreditUpdate, credit: credit{4, 4}}, nil)
	g.expect(opReadWrite)
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opCreditRequest, credit: credit{4, 5}}, nil)
	if p := g.expect(opCreditUpdate); p.credit.bufAlloc != DefaultBuffer {
		t.Fatalf("credit %+v", p.credit)
	}
}

// VS-04: what is held for a host that does not read is bounded by the credit given, and its excess ends the connection.
func TestVS04HostDoesNotRead(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(16)
	c, k := g.dial(1, credit{bufAlloc: 0xffff_ffff})
	rw := header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: credit{bufAlloc: 0xffff_ffff}}
	conn := g.dev.table.find(k)
	block := make([]byte, 64<<10)
	var sent, allowed uint64
	// Up to the credit, that of every update: the host's socket takes some, the device's buffer the rest.
	for allowed = DefaultBuffer; sent+uint64(len(block)) <= allowed; {
		g.send(rw, block)
		sent += uint64(len(block))
		g.settled()
		for len(g.packets) > 0 {
			if p := <-g.packets; p.op != opCreditUpdate {
				t.Fatalf("packet %+v", p.header)
			} else {
				allowed = uint64(p.credit.fwdCnt) + uint64(p.credit.bufAlloc)
			}
		}
		conn.mu.Lock()
		if n := len(conn.buf.ring); n > DefaultBuffer {
			t.Errorf("a buffer of %d bytes", n)
		}
		conn.mu.Unlock()
		if sent > 64<<20 {
			t.Fatal("there is no end to what a host that does not read takes")
		}
	}
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opCreditRequest, credit: rw.credit}, nil)
	p := g.expect(opCreditUpdate)
	room := uint64(p.credit.fwdCnt) + uint64(p.credit.bufAlloc) - sent
	for ; room > 0; room -= min(room, uint64(len(block))) {
		g.send(rw, block[:min(room, uint64(len(block)))])
	}
	g.settled()
	g.send(rw, block[:1])
	g.expect(opReset)
	g.count("overrun", 1)
	conn.mu.Lock()
	if conn.buf.ring != nil {
		t.Error("the buffer outlives its connection")
	}
	conn.mu.Unlock()
	// What the host's socket had taken stays readable.
	got, err := io.ReadAll(c)
	if err != nil || len(got) == 0 || uint64(len(got)) > sent {
		t.Errorf("read %d bytes of %d, %v", len(got), sent, err)
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// VS-07: with no receive buffers, and bytes, requests and resets for the guest, everything sleeps; then it goes on.
func TestVS07NoReceiveBuffers(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(1)
	var conns []*net.UnixConn
	for i := range Port(4) {
		c, _ := g.dial(i+1, roomy)
		conns = append(conns, c)
	}
	g.settled()
	g.mu.Lock() // the driver no longer looks at its used ring, so the one buffer does not come back
	for _, c := range conns {
		c.Write(bytes.Repeat([]byte("x"), 8000))
	}
	_, theirs := pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 9}, theirs)
	g.mu.Unlock()
	g.alone(5)
	g.mu.Lock()
	before := cpuTime(t)
	const wall = 300 * time.Millisecond
	time.Sleep(wall)
	if used := cpuTime(t) - before; used > wall/2 {
		t.Errorf("%v of processor time in %v of waiting", used, wall)
	}
	g.mu.Unlock()
	g.lend(7)
	var got int
	for request := false; got < 4*8000 || !request; {
		p := g.next()
		request = request || p.op == opRequest
		got += len(p.payload)
	}
}

// VS-07: a guest that makes resets and posts no buffer for them has to wait itself.
func TestVS07ResetsPileUp(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	const n = 4 * maxReplies
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range Port(n) {
			g.send(header{srcPort: i, dstPort: 1, op: opReadWrite}, nil)
		}
	}()
	g.count("unknown", maxReplies)
	g.dev.rx.mu.Lock()
	if k := len(g.dev.rx.replies); k > maxReplies {
		t.Errorf("%d resets wait, limit %d", k, maxReplies)
	}
	g.dev.rx.mu.Unlock()
	g.stop() // also while it waits
	g.start()
	g.lend(8)
	for range n {
		g.expect(opReset)
	}
	<-sent
	if k := g.dev.Counters()["lost"]; k != 0 {
		t.Errorf("%d resets were lost", k)
	}
}

// Receive buffers that hold no header, or nothing but one, are given back and do not hold up the others.
func TestUselessReceiveBuffers(t *testing.T) {
	g := newGuest(t, Config{})
	g.start()
	g.lend(1)
	c, _ := g.dial(1, roomy)
	g.settled()
	g.mu.Lock()
	for i, n := range []uint32{0, 1, headerSize - 1, headerSize} {
		g.describe(receiveQueue, uint16(20+i), receiveAt+bufferSize*guestmem.GPA(20+i), n, flagWrite, 0)
		g.offer(receiveQueue, uint16(20+i))
	}
	g.describe(receiveQueue, 30, receiveAt+bufferSize*30, bufferSize, 0, 0) // readable
	g.offer(receiveQueue, 30)
	g.mu.Unlock()
	want := bytes.Repeat([]byte("0123456789"), 1000)
	c.Write(want)
	var got []byte
	for len(got) < len(want) {
		got = append(got, g.expect(opReadWrite).payload...)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes came")
	}
	g.count("malformed", 4)
}
