// Package stacktest is the other side of a network/stack in tests: a guest with a TCP/IP stack of its own, and a world with servers at any
// address, none of which leaves the process.
package stacktest

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// The guest's link, in every test.
var (
	GuestMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	GatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	Guest4     = netip.MustParsePrefix("198.18.0.2/30")
	Guest6     = netip.MustParsePrefix("fd53:706f:7265::2/64")
	Gateway4   = netip.MustParseAddr("198.18.0.1")
	Gateway6   = netip.MustParseAddr("fd53:706f:7265::1")
)

// MTU of the link.
const MTU = 65520

// Header is the length of what comes before a packet: virtio_net_hdr and Ethernet.
const Header = 12 + header.EthernetMinimumSize

const nic tcpip.NICID = 1

// Pair returns the ends of a SOCK_SEQPACKET pair, for frames. Both do not block.
func Pair(t testing.TB) (theirs, ours *os.File) {
	t.Helper()
	theirs, ours, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	return theirs, ours
}

// NewPair is Pair outside a test's goroutine.
func NewPair() (theirs, ours *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		// As large as the system lets us.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	}
	return os.NewFile(uintptr(fds[0]), "frames"), os.NewFile(uintptr(fds[1]), "guest"), nil
}

// Guest is a guest: a TCP/IP stack that Linux's could be.
type Guest struct {
	Net    *stack.Stack
	frames *os.File
	link   *channel.Endpoint
	mtu    int

	mu   sync.Mutex
	tap  func(frame []byte)
	work sync.WaitGroup
	end  context.CancelFunc
}

// NewGuest makes a guest on its end of a pair. It is gone when the test ends.
func NewGuest(t testing.TB, frames *os.File, mtu int) *Guest {
	t.Helper()
	g := &Guest{frames: frames, mtu: mtu, link: channel.New(512, uint32(mtu), "")}
	g.link.LinkEPCapabilities = stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
	g.Net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	must := func(err tcpip.Error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sack := tcpip.TCPSACKEnabled(true)
	must(g.Net.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	must(g.Net.CreateNIC(nic, g.link))
	for _, p := range []netip.Prefix{Guest4, Guest6} {
		number := header.IPv4ProtocolNumber
		if p.Addr().Is6() {
			number = header.IPv6ProtocolNumber
		}
		at := tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()}
		must(g.Net.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: number, AddressWithPrefix: at}, stack.AddressProperties{}))
	}
	g.Net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	g.work.Go(g.read)
	g.work.Go(func() { g.write(ctx) })
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest: its end of the pair is closed.
func (g *Guest) Close() {
	g.end()
	g.frames.Close()
	g.work.Wait()
	g.Net.Close()
	g.Net.Wait()
}

// Tap has f called with every frame that comes to the guest, header and all.
func (g *Guest) Tap(f func(frame []byte)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tap = f
}

func (g *Guest) read() {
	b := make([]byte, Header+1<<16)
	for {
		n, err := g.frames.Read(b)
		if err != nil || n == 0 {
			return
		}
		g.mu.Lock()
		tap := g.tap
		g.mu.Unlock()
		if tap != nil {
			tap(append([]byte(nil), b[:n]...))
		}
		if n < Header {
			continue
		}
		number := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(b[Header-2:]))
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[Header:n])})
		g.link.InjectInbound(number, pkt)
		pkt.DecRef()
	}
}

func (g *Guest) write(ctx context.Context) {
	for {
		pkt := g.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		head := g.Head(uint16(pkt.NetworkProtocolNumber))
		parts := append([][]byte{head}, pkt.AsSlices()...)
		raw, err := g.frames.SyscallConn()
		if err == nil {
			err = raw.Write(func(fd uintptr) bool {
				_, err := unix.Writev(int(fd), parts)
				return err != unix.EAGAIN
			})
		}
		pkt.DecRef()
		if err != nil {
			return
		}
	}
}

// Head is what comes before a packet of the guest's.
func (g *Guest) Head(kind uint16) []byte {
	head := make([]byte, 12, Header)
	head = append(head, GatewayMAC...)
	head = append(head, GuestMAC...)
	return binary.BigEndian.AppendUint16(head, kind)
}

// Send sends a frame as it is.
func (g *Guest) Send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := g.frames.Write(frame); err != nil {
		t.Fatal(err)
	}
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	number := header.IPv4ProtocolNumber
	if a.Addr().Is6() {
		number = header.IPv6ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, number
}

// DialTCP connects from the guest.
func (g *Guest) DialTCP(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	a, number := full(to)
	return gonet.DialContextTCP(ctx, g.Net, a, number)
}

// DialUDP makes a connected socket of the guest's.
func (g *Guest) DialUDP(to netip.AddrPort) (*gonet.UDPConn, error) {
	a, number := full(to)
	return gonet.DialUDP(g.Net, nil, &a, number)
}

// ListenTCP listens in the guest, on all its addresses.
func (g *Guest) ListenTCP(port uint16) (*gonet.TCPListener, error) {
	return gonet.ListenTCP(g.Net, tcpip.FullAddress{NIC: nic, Port: port}, ipv4.ProtocolNumber)
}

// ListenUDP binds in the guest.
func (g *Guest) ListenUDP(port uint16) (*gonet.UDPConn, error) {
	return gonet.DialUDP(g.Net, &tcpip.FullAddress{NIC: nic, Port: port}, nil, ipv4.ProtocolNumber)
}

// World is where a stack under test dials to: servers of this process, under other addresses.
type World struct {
	mu    sync.Mutex
	there map[netip.AddrPort]netip.AddrPort
	asked []netip.AddrPort
}

// NewWorld returns a world with nobody in it.
func NewWorld() *World { return &World{there: map[netip.AddrPort]netip.AddrPort{}} }

// Place puts the server at real where address is.
func (w *World) Place(address, real netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.there[address] = real
}

// Asked returns every destination that was dialled.
func (w *World) Asked() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]netip.AddrPort(nil), w.asked...)
}

// TakeAsked is Asked, of what was dialled since the last call.
func (w *World) TakeAsked() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}

// ErrNobody is what dialling an address ends in that has no server.
var ErrNobody error = unix.ECONNREFUSED

func (w *World) find(a netip.AddrPort) (netip.AddrPort, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, a)
	real, ok := w.there[a]
	if !ok {
		return real, ErrNobody
	}
	return real, nil
}

// TCP implements stack.Dialer.
func (w *World) TCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	real, err := w.find(to)
	if err != nil {
		return nil, err
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", real.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// UDPSocket is a connected socket.
func (w *World) UDPSocket(to netip.AddrPort) (*net.UDPConn, error) {
	real, err := w.find(to)
	if err != nil {
		return nil, err
	}
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(real))
}

// Note notes that somebody wanted to go there.
func (w *World) Note(a netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, a)
}
