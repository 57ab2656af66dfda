package stack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"spore/network/policy"
	"spore/network/stack"
	"spore/network/stack/stacktest"
)

const patience = time.Minute

// world is a stacktest.World as a stack.Dialer.
type world struct{ *stacktest.World }

func (w world) UDP(to netip.AddrPort) (stack.Socket, error) { return w.UDPSocket(to) }

// Ping gives one end of a pair whose other end answers as the kernel's ping sockets do.
func (w world) Ping(to netip.Addr) (stack.Socket, error) {
	w.Note(netip.AddrPortFrom(to, 0))
	theirs, ours, err := stacktest.NewPair()
	if err != nil {
		return nil, err
	}
	go func() {
		defer ours.Close()
		b := make([]byte, 1<<16)
		for {
			n, err := ours.Read(b)
			if err != nil || n < 8 {
				return
			}
			b[0] = 0 // echo reply
			if to.Is6() {
				b[0] = 129
			}
			b[4], b[5] = 0xab, 0xcd // an identifier of the kernel's
			if _, err := ours.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	return theirs, nil
}

// ping waits for the reply to an echo request.
func (r *rig) ping(t testing.TB, to netip.Addr) {
	t.Helper()
	reply := make(chan []byte, 16)
	r.guest.Tap(func(f []byte) { reply <- f })
	defer r.guest.Tap(nil)
	r.guest.Send(t, r.echoRequest(to, 0x1234, 7, "payload"))
	end := time.After(patience)
	for {
		select {
		case f := <-reply:
			p := f[stacktest.Header:]
			if to.Is4() && len(p) == 35 && p[9] == 1 && string(p[20:22]) == "\x00\x00" && string(p[24:]) == "\x12\x34\x00\x07payload" {
				return
			}
			if to.Is6() && len(p) == 55 && p[6] == 58 && string(p[40:42]) == "\x81\x00" && string(p[44:]) == "\x12\x34\x00\x07payload" {
				return
			}
		case <-end:
			t.Fatal("no echo reply")
		}
	}
}

// echoRequest is a frame.
func (r *rig) echoRequest(to netip.Addr, id, sequence uint16, payload string) []byte {
	message := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), byte(sequence >> 8), byte(sequence)}
	message = append(message, payload...)
	if to.Is6() {
		message[0] = 128
		return ipv6(r.guest, stacktest.Guest6.Addr(), to, 58, message)
	}
	return ipv4(r.guest, stacktest.Guest4.Addr(), to, 1, 0, nil, message)
}

// ipv4 is a frame with an IPv4 packet; fragment is the field of flags and offset.
func ipv4(g *stacktest.Guest, from, to netip.Addr, protocol byte, fragment uint16, options, payload []byte) []byte {
	size := 20 + len(options)
	f := append(g.Head(0x0800), byte(0x40|size/4), 0, byte((size+len(payload))>>8), byte(size+len(payload)), 0x11, 0x22, byte(fragment>>8), byte(fragment), 64, protocol, 0, 0)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	return append(append(f, options...), payload...)
}

// ipv6 is a frame with an IPv6 packet.
func ipv6(g *stacktest.Guest, from, to netip.Addr, next byte, payload []byte) []byte {
	f := append(g.Head(0x86dd), 0x60, 0, 0, 0, byte(len(payload)>>8), byte(len(payload)), next, 64)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	return append(f, payload...)
}

// rig is a stack with a guest before it and a world behind it.
type rig struct {
	*stack.Stack
	guest *stacktest.Guest
	world *stacktest.World
	names *policy.Names

	mu     sync.Mutex
	events []policy.Event
}

func (r *rig) record(e policy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// recorded waits for an event that f wants.
func (r *rig) recorded(t *testing.T, f func(policy.Event) bool) policy.Event {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		for _, e := range r.events {
			if f(e) {
				r.mu.Unlock()
				return e
			}
		}
		r.mu.Unlock()
	}
	t.Fatalf("no such event among %+v", r.events)
	panic("unreachable")
}

// setUp makes a rig under the rules.
func setUp(t testing.TB, rules policy.Source, change func(*stack.Config)) *rig {
	t.Helper()
	p, err := policy.Parse(rules)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := stacktest.Pair(t)
	r := &rig{world: stacktest.NewWorld(), names: policy.NewNames(time.Now)}
	cfg := stack.Config{
		Frames: theirs, GuestMAC: stacktest.GuestMAC, GatewayMAC: stacktest.GatewayMAC,
		Guest:    []netip.Prefix{stacktest.Guest4, stacktest.Guest6},
		Gateways: []netip.Addr{stacktest.Gateway4, stacktest.Gateway6}, MTU: stacktest.MTU,
		Policy: p, Names: r.names, Record: r.record, Dialer: world{r.world},
		Limits: stack.Limits{Flows: 256, Opening: 64, Memory: 32 << 20, DialTimeout: 10 * time.Second, TCPIdle: time.Hour, UDPIdle: time.Hour},
	}
	if change != nil {
		change(&cfg)
	}
	if r.Stack, err = stack.New(cfg); err != nil {
		t.Fatal(err)
	}
	r.guest = stacktest.NewGuest(t, ours, cfg.MTU)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

// serve runs f for each connection to a server that stands at address.
func (r *rig) serve(t testing.TB, address string, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(address)
	r.world.Place(at, l.Addr().(*net.TCPAddr).AddrPort())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			work.Go(func() { defer c.Close(); f(c) })
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return at
}

func (r *rig) dial(t testing.TB, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := r.guest.DialTCP(ctx, to)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, nil
}

func echoServer(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

var everything = policy.Source{}

func TestTCP(t *testing.T) {
	for _, address := range []string{"203.0.113.7:4000", "[2001:db8::7]:4000"} {
		t.Run(address, func(t *testing.T) {
			r := setUp(t, policy.Source{Allow: []string{"203.0.113.0/24", "2001:db8::/32"}}, nil)
			at := r.serve(t, address, echoServer)
			c, err := r.dial(t, at)
			if err != nil {
				t.Fatal(err)
			}
			sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			go func() {
				c.Write(sent)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d came back: %v", len(got), len(sent), err)
			}
			c.Close()
			e := r.recorded(t, func(e policy.Event) bool { return e.Action == policy.Allow })
			if e.Destination != at || e.Sent != uint64(len(sent)) || e.Received != uint64(len(sent)) {
				t.Errorf("recorded %+v", e)
			}
		})
	}
}

func TestTCPRefusedIsRefused(t *testing.T) {
	r := setUp(t, everything, nil)
	_, err := r.dial(t, netip.MustParseAddrPort("8.8.8.8:4000"))
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("refused")) {
		t.Errorf("dial: %v", err)
	}
}

func TestTCPDeniedIsProhibited(t *testing.T) {
	r := setUp(t, policy.Source{Allow: []string{"203.0.113.0/24"}}, nil)
	prohibited := make(chan []byte, 16)
	r.guest.Tap(func(f []byte) {
		if len(f) > stacktest.Header+22 && f[stacktest.Header+9] == 1 {
			prohibited <- f[stacktest.Header+20:]
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go r.guest.DialTCP(ctx, netip.MustParseAddrPort("8.8.8.8:4000"))
	select {
	case icmp := <-prohibited:
		if icmp[0] != 3 || icmp[1] != 13 {
			t.Errorf("ICMP type %d code %d", icmp[0], icmp[1])
		}
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	if asked := r.world.Asked(); len(asked) != 0 {
		t.Errorf("dialled %v", asked)
	}
	r.recorded(t, func(e policy.Event) bool { return e.Action == policy.Deny && e.Destination.Port() == 4000 })
	if s := r.Stats(); s.Denied == 0 {
		t.Errorf("%+v", s)
	}
}

// TestTCPServerEnds has the server speak first and end first.
func TestTCPServerEnds(t *testing.T) {
	r := setUp(t, everything, nil)
	at := r.serve(t, "8.8.8.8:22", func(c *net.TCPConn) { c.Write([]byte("SSH-2.0-x\r\n")) })
	c, err := r.dial(t, at)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "SSH-2.0-x\r\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTCPResetIsReset(t *testing.T) {
	r := setUp(t, everything, nil)
	at := r.serve(t, "8.8.8.8:22", func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) })
	c, err := r.dial(t, at)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read: %v", err)
	}
}

func TestUDP(t *testing.T) {
	for _, address := range []string{"8.8.8.8:4000", "[2606:4700::1]:4000"} {
		t.Run(address, func(t *testing.T) {
			r := setUp(t, everything, nil)
			server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			at := netip.MustParseAddrPort(address)
			r.world.Place(at, server.LocalAddr().(*net.UDPAddr).AddrPort())
			go func() {
				b := make([]byte, 1<<16)
				for {
					n, from, err := server.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					server.WriteToUDPAddrPort(b[:n], from)
				}
			}()
			c, err := r.guest.DialUDP(at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			for _, size := range []int{0, 1, 1400, 9000, 65400, 65507 - 20*btoi(at.Addr().Is6())} {
				sent := bytes.Repeat([]byte{byte(size)}, size)
				if _, err := c.Write(sent); err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				b := make([]byte, 1<<16)
				n, err := c.Read(b)
				if err != nil || !bytes.Equal(b[:n], sent) {
					t.Errorf("%d bytes: %d came back: %v", size, n, err)
				}
			}
			if s := r.Stats(); s.Flows != 1 || s.Open != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

type fakeResolver struct{}

func (fakeResolver) Answer(ctx context.Context, query []byte, tcp bool) []byte {
	if tcp {
		return append([]byte("tcp:"), query...)
	}
	return append([]byte("udp:"), query...)
}

func TestDNS(t *testing.T) {
	r := setUp(t, everything, func(c *stack.Config) { c.Resolver = fakeResolver{} })
	for _, gateway := range []netip.Addr{stacktest.Gateway4, stacktest.Gateway6} {
		c, err := r.guest.DialUDP(netip.AddrPortFrom(gateway, 53))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("question"))
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "udp:question" {
			t.Errorf("%v: %q %v", gateway, b[:n], err)
		}
		c.Close()
		tcp, err := r.dial(t, netip.AddrPortFrom(gateway, 53))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			tcp.Write([]byte("\x00\x08question"))
			if _, err := io.ReadFull(tcp, b[:14]); err != nil || string(b[:14]) != "\x00\x0ctcp:question" {
				t.Errorf("%v: %q %v", gateway, b[:14], err)
			}
		}
		tcp.Close()
	}
	if s := r.Stats(); s.Queries != 8 {
		t.Errorf("%+v", s)
	}
	if _, err := r.dial(t, netip.AddrPortFrom(stacktest.Gateway4, 54)); err == nil {
		t.Error("another port of the gateway's answers")
	}
}

func TestPing(t *testing.T) {
	r := setUp(t, policy.Source{Allow: []string{"icmp://203.0.113.0/24", "icmp://[2001:db8::]/32"}}, nil)
	for _, to := range []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7"), stacktest.Gateway4, stacktest.Gateway6} {
		r.ping(t, to)
	}
	if asked := r.world.Asked(); len(asked) != 2 {
		t.Errorf("asked for %v", asked)
	}
}

// TestNeighbours asks for our addresses, which is answered, and for others, which is not.
func TestNeighbours(t *testing.T) {
	r := setUp(t, everything, nil)
	answers := make(chan []byte, 16)
	r.guest.Tap(func(f []byte) { answers <- f[stacktest.Header:] })
	arp := func(target netip.Addr) []byte {
		f := append(r.guest.Head(0x0806), 0, 1, 8, 0, 6, 4, 0, 1)
		f = append(append(f, stacktest.GuestMAC...), stacktest.Guest4.Addr().AsSlice()...)
		return append(append(f, make([]byte, 6)...), target.AsSlice()...)
	}
	solicit := func(target netip.Addr) []byte {
		body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
		f := ipv6(r.guest, stacktest.Guest6.Addr(), target, 58, append(append(body, 1, 1), stacktest.GuestMAC...))
		f[stacktest.Header+7] = 255
		return f
	}
	r.guest.Send(t, arp(stacktest.Guest4.Addr()))
	r.guest.Send(t, arp(netip.MustParseAddr("198.18.0.3")))
	r.guest.Send(t, solicit(netip.MustParseAddr("fd53:706f:7265::3")))
	r.guest.Send(t, arp(stacktest.Gateway4))
	r.guest.Send(t, solicit(stacktest.Gateway6))
	for i := range 2 {
		select {
		case p := <-answers:
			if i == 0 && (len(p) != 28 || p[7] != 2 || !bytes.Equal(p[8:14], stacktest.GatewayMAC) || !bytes.Equal(p[14:18], stacktest.Gateway4.AsSlice())) {
				t.Errorf("ARP %x", p)
			}
			if i == 1 && (len(p) != 72 || p[40] != 136 || p[44] != 0xe0 || !bytes.Equal(p[48:64], stacktest.Gateway6.AsSlice()) || !bytes.Equal(p[66:72], stacktest.GatewayMAC)) {
				t.Errorf("advertisement %x", p)
			}
		case <-time.After(patience):
			t.Fatal("no answer")
		}
	}
}

func TestPublishTCP(t *testing.T) {
	r := setUp(t, everything, nil)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r.PublishTCP(l, 8080)
	gl, err := r.guest.ListenTCP(8080)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := gl.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("hello"))
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	gl.Close()
}

func TestPublishUDP(t *testing.T) {
	r := setUp(t, everything, nil)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := conn.LocalAddr().String()
	gc, err := r.guest.ListenUDP(5353)
	if err != nil {
		t.Fatal(err)
	}
	defer gc.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := gc.ReadFrom(b)
			if err != nil {
				return
			}
			gc.WriteTo(append([]byte("re:"), b[:n]...), from)
		}
	}()
	r.PublishUDP(conn, 5353)
	for _, text := range []string{"one", "two"} {
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		for range 3 {
			c.Write([]byte(text))
			b := make([]byte, 100)
			if n, err := c.Read(b); err != nil || string(b[:n]) != "re:"+text {
				t.Errorf("%q, %v", b[:n], err)
			}
		}
		c.Close()
	}
	if s := r.Stats(); s.Flows != 2 {
		t.Errorf("%+v", s)
	}
}

func TestResetEndsEverything(t *testing.T) {
	r := setUp(t, everything, nil)
	at := r.serve(t, "8.8.8.8:22", echoServer)
	c, err := r.dial(t, at)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Reset()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	for r.Stats().Open > 0 {
		time.Sleep(time.Millisecond)
	}
	if c, err = r.dial(t, at); err != nil {
		t.Errorf("dial afterwards: %v", err)
	}
}
