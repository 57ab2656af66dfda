package vsock

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"spore/vmm/api"
)

// The benchmarks measure the device with the least guest there can be: one that takes and posts buffers and looks at
// nothing. Host and guest share this process and its processors.

// lazyGuest opens a connection whose guest is the benchmark.
func lazyGuest(b *testing.B) (*guest, *net.UnixConn, key) {
	g := newGuest(b, Config{})
	g.start()
	g.lend(ringSize)
	host, theirs := pair(b)
	for _, fd := range []int{theirs, int(fdOf(b, host))} { // as package sandbox/broker makes them
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 208<<10); err != nil {
			b.Fatal(err)
		}
	}
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}, theirs)
	p := g.expect(opRequest)
	return g, host, key{guest: p.dstPort, host: p.srcPort}
}

// BenchmarkToGuest moves 64 KiB from the host per operation, into receive buffers of 4 KiB.
func BenchmarkToGuest(b *testing.B) {
	const block = 64 << 10
	g, host, k := lazyGuest(b)
	var got, told uint32
	g.mu.Lock()
	g.take[k] = func(p packet) {
		if got += uint32(len(p.payload)); got-told >= 512<<10 {
			told = got
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opCreditUpdate, credit: credit{bufAlloc: 1 << 20, fwdCnt: got}}, nil)
		}
	}
	g.mu.Unlock()
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opResponse, credit: credit{bufAlloc: 1 << 20}}, nil)
	p := make([]byte, block)
	b.SetBytes(block)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := host.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkToHost moves 64 KiB from the guest per operation, in one packet as Linux does.
func BenchmarkToHost(b *testing.B) {
	const block = 64 << 10
	g, host, k := lazyGuest(b)
	credits := make(chan uint32, 1<<16)
	g.mu.Lock()
	g.take[k] = func(p packet) { credits <- p.credit.fwdCnt }
	g.mu.Unlock()
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opResponse, credit: roomy}, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.CopyBuffer(io.Discard, struct{ io.Reader }{host}, make([]byte, 256<<10))
	}()
	p := make([]byte, block)
	var sent, taken uint32
	b.SetBytes(block)
	b.ReportAllocs()
	for b.Loop() {
		for sent-taken > DefaultBuffer-block {
			taken = <-credits
		}
		g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: roomy}, p)
		sent += block
	}
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opShutdown, flags: shutdownBoth}, nil)
	<-done
}

// BenchmarkPingPong is one byte from the host to the guest and back.
func BenchmarkPingPong(b *testing.B) {
	g, host, k := lazyGuest(b)
	var fwd uint32
	g.mu.Lock()
	g.take[k] = func(p packet) {
		if len(p.payload) > 0 {
			fwd += uint32(len(p.payload))
			g.send(header{srcPort: k.guest, dstPort: k.host, op: opReadWrite, credit: credit{bufAlloc: 1 << 20, fwdCnt: fwd}}, p.payload)
		}
	}
	g.mu.Unlock()
	g.send(header{srcPort: k.guest, dstPort: k.host, op: opResponse, credit: roomy}, nil)
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := host.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := host.Read(p); err != nil {
			b.Fatal(err)
		}
	}
}
