// Package stack is the TCP/IP stack that a mediated guest's frames end in. It answers for every address in the world: a connection that
// the policy allows is made again from a socket of this process's, and nothing else of the guest's gets any further. What the stack
// never forwards it drops and counts, or answers with "administratively prohibited".
//
// The guest is hostile. Frames are judged before anything of them is used; flows, half-open connections, memory and goroutines are
// bounded; a guest that is slow or silent is waited for, but not for ever.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"spore/network/policy"
	"spore/network/proxy"
)

// Resolver answers the guest's DNS queries; *resolver.Server is one.
type Resolver interface {
	Answer(ctx context.Context, query []byte, overTCP bool) []byte
}

// Config is what a Stack is made of. All fields must be set but those that say what their zero value is.
type Config struct {
	Frames     *os.File // non-blocking: whole frames behind a virtio_net_hdr of 12 bytes. The Stack closes it
	GuestMAC   net.HardwareAddr
	GatewayMAC net.HardwareAddr
	Guest      []netip.Prefix // one of each family at most
	Gateways   []netip.Addr   // one for each of Guest
	MTU        int            // bytes

	Policy   *policy.Policy
	Names    *policy.Names
	Resolver Resolver           // nil: no name server
	Proxy    *proxy.Proxy       // looks into connections
	Record   func(policy.Event) // nil: nobody is told
	Dialer   Dialer             // nil is Direct
	Limits   Limits
	Log      *slog.Logger // nil is silent
}

// Limits bound what the guest can make a Stack use. All must be set.
type Limits struct {
	Flows       int           // open at once
	Opening     int           // TCP connections of those that are not there yet
	Memory      int64         // bytes of data on the way, roughly
	DialTimeout time.Duration // for the connection to the destination
	TCPIdle     time.Duration // after which a silent connection is closed
	UDPIdle     time.Duration // and a run of datagrams, or of echo requests
}

// nic is the number of the stack's only interface.
const nic tcpip.NICID = 1

// Stack is a running TCP/IP stack.
type Stack struct {
	cfg   Config
	log   *slog.Logger
	net   *stack.Stack
	guest *endpoint
	count counters
	flows flows
	tcp   *tcp.Forwarder
	syns  syns

	sessions sessions
	queries  chan struct{} // a place for each question that is being answered

	ctx    context.Context // ends with Close; for what a packet of the guest's begins, which no caller waits for
	cancel context.CancelFunc
	work   sync.WaitGroup
	err    error // of the reader; once work is done
}

// New makes a Stack, which serves the guest until Close, or until the other end of Frames closes.
func New(cfg Config) (*Stack, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Record == nil {
		cfg.Record = func(policy.Event) {}
	}
	if cfg.Dialer == nil {
		cfg.Dialer = Direct{}
	}
	l, err := newLink(&cfg)
	if err != nil {
		return nil, err
	}
	raw, err := cfg.Frames.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("make stack: frames: %w", err)
	}
	s := &Stack{cfg: cfg, log: cfg.Log, queries: make(chan struct{}, maxQueries)}
	s.flows.init(cfg.Limits, &s.count)
	s.sessions.init()
	s.syns.init(cfg.Limits.Opening)
	s.guest = &endpoint{link: l, mtu: uint32(cfg.MTU), frames: cfg.Frames, raw: raw, count: &s.count, handle: s.handle, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.assemble(); err != nil {
		s.cancel()
		return nil, fmt.Errorf("make stack: %w", err)
	}
	s.work.Go(s.flows.sweep)
	s.work.Go(func() { s.err = s.guest.serve() })
	return s, nil
}

func newLink(cfg *Config) (link, error) {
	var l link
	if len(cfg.GuestMAC) != len(l.guestMAC) || len(cfg.GatewayMAC) != len(l.gatewayMAC) {
		return l, errors.New("make stack: two Ethernet addresses are needed")
	}
	l.guestMAC, l.gatewayMAC = [6]byte(cfg.GuestMAC), [6]byte(cfg.GatewayMAC)
	if len(cfg.Guest) == 0 || len(cfg.Guest) != len(cfg.Gateways) {
		return l, fmt.Errorf("make stack: %d addresses of the guest and %d gateways: one for each is needed", len(cfg.Guest), len(cfg.Gateways))
	}
	for i, p := range cfg.Guest {
		guest, gateway := p.Addr(), cfg.Gateways[i]
		if guest.Is4() != gateway.Is4() || !p.Contains(gateway) || guest == gateway {
			return l, fmt.Errorf("make stack: gateway %v is not in the guest's subnet %v", gateway, p)
		}
		mine, theirs := &l.gateway4, &l.guest4
		if guest.Is6() {
			mine, theirs = &l.gateway6, &l.guest6
		}
		if theirs.IsValid() {
			return l, fmt.Errorf("make stack: %v: there is one address of that family already", p)
		}
		*mine, *theirs = gateway, guest
	}
	return l, nil
}

// assemble puts the TCP/IP stack together: one interface that has every address, and handlers for what comes in.
func (s *Stack) assemble() error {
	s.net = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{
			NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
		})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := setOptions(s.net); err != nil {
		return err
	}
	if err := s.net.CreateNIC(nic, s.guest); err != nil {
		return fmt.Errorf("interface: %v", err)
	}
	for i, a := range s.cfg.Gateways {
		number := header.IPv4ProtocolNumber
		if a.Is6() {
			number = header.IPv6ProtocolNumber
		}
		at := tcpip.AddressWithPrefix{Address: address(a), PrefixLen: s.cfg.Guest[i].Bits()}
		if err := s.net.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: number, AddressWithPrefix: at}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("address %v: %v", a, err)
		}
	}
	s.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	if err := s.net.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("promiscuous mode: %v", err)
	}
	if err := s.net.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("spoofing: %v", err)
	}
	s.tcp = tcp.NewForwarder(s.net, flowBufferMax, s.cfg.Limits.Opening, s.forwardTCP)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	return nil
}

// setOptions suits TCP to a link that loses nothing and has no distance.
func setOptions(n *stack.Stack) error {
	sack, moderate, wait, linger, retries := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(false),
		tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPLingerTimeoutOption(closing), tcpip.TCPSynRetriesOption(3)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: flowBufferMin, Default: flowBufferMax, Max: flowBufferMax}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: flowBufferMin, Default: flowBufferMax, Max: flowBufferMax}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &linger, &retries, &receive, &send} {
		if err := n.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("option %T: %v", o, err)
		}
	}
	return nil
}

// address is an address as the TCP/IP stack has it.
func address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

// addrPort is the opposite of address, with a port.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice()) // of 4 or 16 bytes, or the zero value
	return netip.AddrPortFrom(ip, port)
}

// handle does what is to be done with frames that are not for the TCP/IP stack. It is called by the reader.
func (s *Stack) handle(j judgement) {
	switch j.fate {
	case malformed:
		s.count.malformed.Add(1)
	case spoofed:
		s.count.spoofed.Add(1)
	case unwanted:
		s.count.unwanted.Add(1)
	case refuse:
		s.count.unwanted.Add(1)
		s.send(s.guest.prohibited(nil, j.packet, j.source))
	case solicit:
		s.send(s.guest.neighbour(nil, j))
	case echoUs:
		s.send(s.guest.pong(nil, j.target, j.source, j.payload))
	case echo:
		s.echo(j)
	case deliver:
		panic("bug: a frame to deliver was not delivered")
	}
}

func (s *Stack) send(frame []byte) { s.guest.send([][]byte{frame}) }

// isGateway reports whether an address is ours.
func (s *Stack) isGateway(a netip.Addr) bool { return a == s.guest.gateway4 || a == s.guest.gateway6 }

// Reset drops every flow: the guest is another one from now on.
func (s *Stack) Reset() { s.flows.closeAll() }

// Done is closed when the other end of Frames has closed.
func (s *Stack) Done() <-chan struct{} { return s.guest.done }

// Close ends every flow and waits until nothing of the Stack runs any more. It returns why the reader ended, if that was not
// asked for.
func (s *Stack) Close() error {
	s.cancel()
	s.guest.quiet.Store(true)
	s.cfg.Frames.Close()
	s.flows.shut()
	s.net.Close()
	s.work.Wait()
	s.flows.wait()
	s.net.Wait()
	return s.err
}
