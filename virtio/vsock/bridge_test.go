package vsock

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"spore/vmm/api"
)

// bridge joins a connection, in the guest, to a socket: what a guest's kernel and its program do. It keeps to the
// device's credit and tells its own.
type bridge struct {
	g    *guest
	k    key
	sock *net.UnixConn // the program's end of the kernel
	wg   sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond
	in      bytes.Buffer // from the device, not yet taken by the program
	fwd     uint32
	told    uint32
	alloc   uint32
	sent    uint32
	peer    credit
	eof     bool // the host sends no more
	deaf    bool // the host receives no more
	dead    bool
}

const bridgeBuffer = 64 << 10

// newBridge gives the guest's end of a connection that the host dials, and the host's.
func newBridge(g *guest, port Port) (guest, host *net.UnixConn, stop func()) {
	g.t.Helper()
	host, theirs := pair(g.t)
	g.tell(api.BrokerMessage{Op: api.BrokerDial, GuestPort: uint32(port)}, theirs)
	p := g.expect(opRequest)
	guest, fd := pair(g.t)
	f := os.NewFile(uintptr(fd), "program")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		g.t.Fatal(err)
	}
	b := &bridge{g: g, k: key{guest: p.dstPort, host: p.srcPort}, sock: c.(*net.UnixConn), alloc: bridgeBuffer, peer: p.credit}
	b.changed.L = &b.mu
	g.mu.Lock()
	g.take[b.k] = b.packet
	g.mu.Unlock()
	b.send(header{op: opResponse}, nil)
	b.wg.Go(b.toDevice)
	b.wg.Go(b.toProgram)
	return guest, host, func() {
		b.end()
		b.wg.Wait()
	}
}

func (b *bridge) end() {
	b.mu.Lock()
	b.dead = true
	b.changed.Broadcast()
	b.mu.Unlock()
	b.sock.Close()
}

// send sends h with the credit of now. The lock is held over both, so that credit goes out in order.
func (b *bridge) send(h header, payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sendLocked(h, payload)
}

func (b *bridge) sendLocked(h header, payload []byte) {
	b.told = b.fwd
	h.srcPort, h.dstPort, h.credit = b.k.guest, b.k.host, credit{bufAlloc: b.alloc, fwdCnt: b.fwd}
	b.g.send(h, payload)
}

func (b *bridge) packet(p packet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.changed.Broadcast()
	b.peer = p.credit
	switch p.op {
	case opReadWrite:
		b.in.Write(p.payload)
		if b.in.Len() > bridgeBuffer {
			b.g.t.Errorf("the device sent beyond the credit: %d bytes", b.in.Len())
		}
	case opShutdown:
		b.eof = b.eof || p.flags&shutdownSend != 0
		b.deaf = b.deaf || p.flags&shutdownReceive != 0
	case opReset:
		b.eof, b.deaf, b.dead = true, true, true
	}
}

// toDevice sends what the program writes.
func (b *bridge) toDevice() {
	p := make([]byte, 64<<10)
	for {
		n, err := b.sock.Read(p)
		for sent := 0; sent < n; {
			b.mu.Lock()
			for !b.dead && !b.deaf && b.sent-b.peer.fwdCnt >= b.peer.bufAlloc {
				b.changed.Wait()
			}
			if b.dead || b.deaf {
				b.mu.Unlock()
				b.sock.CloseRead()
				return
			}
			k := min(n-sent, int(b.peer.bufAlloc-(b.sent-b.peer.fwdCnt)))
			b.sent += uint32(k)
			b.sendLocked(header{op: opReadWrite}, p[sent:sent+k])
			b.mu.Unlock()
			sent += k
		}
		if err != nil {
			b.send(header{op: opShutdown, flags: shutdownSend}, nil)
			return
		}
	}
}

// toProgram gives the program what came.
func (b *bridge) toProgram() {
	for {
		b.mu.Lock()
		for b.in.Len() == 0 && !b.eof {
			b.changed.Wait()
			if b.dead {
				b.eof = true
			}
		}
		p := bytes.Clone(b.in.Next(16 << 10))
		b.mu.Unlock()
		if len(p) == 0 {
			b.sock.CloseWrite()
			return
		}
		if _, err := b.sock.Write(p); err != nil {
			b.send(header{op: opShutdown, flags: shutdownReceive}, nil)
			return
		}
		b.mu.Lock()
		b.fwd += uint32(len(p))
		if b.fwd-b.told >= bridgeBuffer/4 && !b.dead {
			b.sendLocked(header{op: opCreditUpdate}, nil)
		}
		b.mu.Unlock()
	}
}

// TestConn holds the whole way, from a host's socket through the device to a program in the guest, to what every
// net.Conn must do.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		g := newGuest(t, Config{})
		g.start()
		g.lend(ringSize)
		c2, c1, end := newBridge(g, 1)
		for _, c := range []net.Conn{c1, c2} {
			c.SetDeadline(time.Time{})
		}
		return c1, c2, func() {
			c1.Close()
			c2.Close()
			end()
		}, nil
	})
}

// TestManyStreams moves random bytes both ways over several connections with few receive buffers, while the device is
// paused and resumed.
func TestManyStreams(t *testing.T) {
	const streams, each = 8, 1 << 20
	g := newGuest(t, Config{})
	g.start()
	g.lend(6)
	var wg sync.WaitGroup
	for i := range streams {
		guest, host, stop := newBridge(g, Port(i+1))
		defer stop()
		for _, way := range [][2]*net.UnixConn{{guest, host}, {host, guest}} {
			wg.Go(func() {
				rng := rand.NewChaCha8([32]byte{byte(i)})
				if _, err := io.CopyBuffer(struct{ io.Writer }{way[0]}, io.LimitReader(rng, each), make([]byte, 7001)); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
				way[0].CloseWrite()
			})
			wg.Go(func() {
				h := sha256.New()
				n, err := io.Copy(h, struct{ io.Reader }{way[1]})
				if err != nil || n != each {
					t.Errorf("stream %d: read %d bytes, %v", i, n, err)
				}
				want := sha256.New()
				io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), each))
				if !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
					t.Errorf("stream %d: other bytes came", i)
				}
			})
		}
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for paused := 0; ; paused++ {
		select {
		case <-done:
			t.Logf("paused %d times", paused)
			return
		default:
			g.stop()
			if g.runErr != nil {
				t.Fatal(g.runErr)
			}
			g.start()
			g.settled()
		}
	}
}
