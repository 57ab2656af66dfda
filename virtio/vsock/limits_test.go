package vsock

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/virtio/queue"
	"spore/vmm/api"
)

// openFiles is how many descriptors this process has.
func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// VS-05: connections are bounded from both sides; one that is over makes room; the rest are refused.
func TestVS05Flood(t *testing.T) {
	const limit = 8
	g := newGuest(t, Config{Connections: limit})
	g.start()
	g.lend(32)
	files := openFiles(t)
	// A guest that asks a supervisor that does not answer.
	for i := range Port(limit) {
		g.send(header{srcPort: i, dstPort: 6, op: opRequest, credit: roomy}, nil)
	}
	for range 100 {
		g.send(header{srcPort: 1000, dstPort: 6, op: opRequest, credit: roomy}, nil)
		if p := g.expect(opReset); p.dstPort != 1000 {
			t.Fatalf("answer %+v", p.header)
		}
	}
	g.alone(limit)
	c, theirs := pair(t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
	wantEOF(t, c)
	c.Close()
	for i := range Port(limit) {
		g.send(header{srcPort: i, dstPort: 6, op: opReset}, nil)
	}
	g.alone(0)
	// Rapid reopening under one name.
	for range 200 {
		g.send(header{srcPort: 7, dstPort: 6, op: opRequest, credit: roomy}, nil)
		g.send(header{srcPort: 7, dstPort: 6, op: opReset}, nil)
	}
	g.settled()
	g.alone(0)
	// Connections that the host has closed and the guest does not confirm make room, the oldest first.
	for i := range Port(3 * limit) {
		c, theirs := pair(t)
		g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: uint32(i)}, theirs)
		p := g.next()
		for p.op == opReset && i >= limit { // of the one that was forgotten
			p = g.next()
		}
		g.send(header{srcPort: p.dstPort, dstPort: p.srcPort, op: opResponse, credit: roomy}, nil)
		c.Close()
		for p.op != opShutdown || p.flags != shutdownBoth {
			p = g.next()
		}
	}
	g.count("evicted", 2*limit)
	if n := g.connections(); n > limit {
		t.Errorf("%d connections, limit %d", n, limit)
	}
	g.stop()
	g.dev.Reset()
	if n := openFiles(t); n > files {
		t.Errorf("%d descriptors open, %d before", n, files)
	}
}

// VS-06: every way a connection can end takes it off every count.
func TestVS06EveryEnd(t *testing.T) {
	g := newGuest(t, Config{Connections: 4})
	g.start()
	g.lend(16)
	first, k := g.dial(1, roomy) // so that everything runs
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
	wantEOF(t, first)
	g.alone(0)
	files := openFiles(t)
	routines := runtime.NumGoroutine()
	shut := func(k key, flags uint32) {
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: flags, credit: roomy}, nil)
	}
	ends := map[string]func(){
		"guest refuses": func() {
			c, theirs := pair(t)
			g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
			p := g.expect(opRequest)
			g.send(header{srcPort: p.dstPort, dstPort: p.srcPort, op: opReset}, nil)
			wantEOF(t, c)
			c.Close()
		},
		"host refuses": func() {
			g.send(header{srcPort: 5, dstPort: 6, op: opRequest, credit: roomy}, nil)
			g.tell(api.BrokerMessage{Op: api.BrokerRefuse, ID: g.asked().ID}, -1)
			g.expect(opReset)
		},
		"guest gives up": func() {
			g.send(header{srcPort: 5, dstPort: 6, op: opRequest, credit: roomy}, nil)
			m := g.asked()
			g.send(header{srcPort: 5, dstPort: 6, op: opReset}, nil)
			g.alone(0)
			c, theirs := pair(t)
			g.tell(api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}, theirs)
			wantEOF(t, c)
			c.Close()
		},
		"guest closes": func() {
			c, k := g.dial(1, roomy)
			shut(k, shutdownBoth)
			g.expect(opReset)
			wantEOF(t, c)
			c.Close()
		},
		"guest resets": func() {
			c, k := g.dial(1, roomy)
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
			wantEOF(t, c)
			c.Close()
		},
		"host closes with bytes unread": func() {
			c, k := g.dial(1, roomy)
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, []byte("x"))
			g.settled()
			c.Close() // the device's socket says ECONNRESET
			for {
				p := g.next()
				if p.op == opReset {
					break
				}
				if p.op == opShutdown && p.flags == shutdownBoth {
					g.send(header{srcPort: k.guest, dstPort: k.host, op: opReset}, nil)
					break
				}
			}
		},
		"guest overruns": func() {
			c, k := g.dial(1, roomy)
			unknown := g.dev.Counters()["unknown"]
			for range 2 * DefaultBuffer / (64 << 10) * 2 {
				g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, make([]byte, 64<<10))
			}
			g.settled()
			late := g.dev.Counters()["unknown"] - unknown // what came after the end is refused as well
			for range 1 + late {
				for g.next().op != opReset {
				}
			}
			c.Close()
		},
		"a stranger among the supervisor's messages": func() {
			c, theirs := pair(t)
			defer c.Close()
			g.tell(api.BrokerMessage{Op: api.BrokerRefuse, ID: 77}, theirs)
			g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, -1)
			g.tell(api.BrokerMessage{Op: api.BrokerAccept, ID: 1 << 31}, -1)
			if _, err := unix.Write(g.broker, []byte("nonsense")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, end := range ends {
		for range 10 { // more than the limit
			end()
			g.alone(0)
		}
		if t.Failed() {
			t.Fatalf("in %q", name)
		}
	}
	g.dev.rx.mu.Lock()
	if n := len(g.dev.rx.control) + len(g.dev.rx.waiting) + len(g.dev.rx.replies) + len(g.dev.table.byID) + len(g.dev.table.byKey); n != 0 {
		t.Errorf("%d records left", n)
	}
	g.dev.rx.mu.Unlock()
	runtime.GC()
	for end := time.Now().Add(patience); runtime.NumGoroutine() > routines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), routines)
		}
	}
	g.stop() // waits for the last socket to be closed
	if n := openFiles(t); n > files+1 {
		t.Errorf("%d descriptors open, %d before", n, files)
	}
}

// a broken ring ends Run at once, with connections in use or not; after a reset the device serves.
func TestQ06BrokenRings(t *testing.T) {
	for _, q := range []int{receiveQueue, transmitQueue} {
		for _, busy := range []bool{false, true} {
			g := newGuest(t, Config{})
			g.start()
			g.lend(8)
			if busy {
				c, _ := g.dial(1, roomy)
				c.Write(make([]byte, 64<<10))
				g.expect(opReadWrite)
			}
			g.mu.Lock()
			g.avail[q] += 2 * ringSize // for good: what is lent meanwhile does not mend it
			g.store16(g.states[q].Avail+2, g.avail[q])
			g.kick(q)
			g.mu.Unlock()
			select {
			case <-g.running:
			case <-time.After(patience):
				t.Fatalf("queue %d, busy %v: Run goes on", q, busy)
			}
			g.stop()
			if !errors.Is(g.runErr, queue.ErrRing) {
				t.Fatalf("queue %d, busy %v: Run ended with %v, want %v", q, busy, g.runErr, queue.ErrRing)
			}
			for len(g.packets) > 0 {
				<-g.packets
			}
			g.renew()
			g.start()
			g.lend(8)
			g.dial(2, roomy)
		}
	}
}
