package stack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"spore/network/policy"
)

// published is what stands in the place of a rule for what comes from outside.
var published = policy.Verdict{Action: policy.Allow, Rule: "published"}

const (
	guestPatience   = 10 * time.Second // for the guest to take a connection
	ephemeral       = 49152            // the first of the ports that datagrams from outside come from (RFC 6335 §6)
	acceptPatience  = 50 * time.Millisecond
	publishedPeers  = 256 // of one UDP port
	publishedOpened = 64  // TCP connections of one port that the guest has not taken yet
)

// PublishTCP leads connections that l accepts to a port of the guest's, until the stack is closed. It closes l.
func (s *Stack) PublishTCP(l *net.TCPListener, port uint16) {
	s.work.Go(func() { <-s.ctx.Done(); l.Close() })
	opening := make(chan struct{}, publishedOpened)
	s.work.Go(func() {
		for {
			outside, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil {
				return
			}
			if err != nil { // no descriptors left, for the moment
				time.Sleep(acceptPatience)
				continue
			}
			select {
			case opening <- struct{}{}:
				s.work.Go(func() { s.lead(outside, port, func() { <-opening }) })
			default:
				s.count.overload.Add(1)
				reset(outside)
			}
		}
	})
}

// reset closes a connection in a way that its other end sees as an error.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // it is gone if this fails
	_ = c.Close()
}

// lead joins a connection from outside to one that it makes to the guest. opened is called once that is made or has failed.
func (s *Stack) lead(outside *net.TCPConn, port uint16, opened func()) {
	guest, gateway := s.inside()
	c := &connection{stack: s}
	ctx, cancel := context.WithTimeout(s.ctx, guestPatience)
	defer cancel()
	f := policy.Flow{Protocol: policy.TCP, Destination: netip.AddrPortFrom(guest, port)}
	c.flow = s.flows.add(f, s.cfg.Limits.TCPIdle, func() { cancel(); c.abort() })
	if c.flow == nil {
		opened()
		s.count.overload.Add(1)
		reset(outside)
		return
	}
	defer s.flows.remove(c.flow)
	err := c.connect(ctx, gateway, f.Destination)
	opened()
	if err != nil {
		s.count.failed.Add(1)
		reset(outside)
		return
	}
	s.count.flows.Add(1)
	c.join(outside, nil)
	s.ended(c.flow, published, "")
}

// inside is the guest's address that published ports lead to, and ours that they come from.
func (s *Stack) inside() (guest, gateway netip.Addr) {
	if s.guest.guest4.IsValid() {
		return s.guest.guest4, s.guest.gateway4
	}
	return s.guest.guest6, s.guest.gateway6
}

// connect makes the connection to the guest.
func (c *connection) connect(ctx context.Context, from netip.Addr, to netip.AddrPort) error {
	number := header.IPv4ProtocolNumber
	if from.Is6() {
		number = header.IPv6ProtocolNumber
	}
	ep, err := c.stack.net.NewEndpoint(tcp.ProtocolNumber, number, &c.queue)
	if err != nil {
		return errors.New(err.String())
	}
	entry, made := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	if err := ep.Bind(tcpip.FullAddress{NIC: nic, Addr: address(from)}); err != nil {
		ep.Close()
		return errors.New(err.String())
	}
	err = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: address(to.Addr()), Port: to.Port()})
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-made:
			err = ep.LastError()
		case <-ctx.Done():
			err = &tcpip.ErrTimeout{}
		}
	}
	if err != nil {
		ep.Abort()
		return errors.New(err.String())
	}
	c.attach(ep)
	return nil
}

// attach makes ep the guest's side.
func (c *connection) attach(ep tcpip.Endpoint) {
	size := int64(c.stack.flows.buffer())
	o := ep.SocketOptions()
	o.SetReceiveBufferSize(size, false)
	o.SetSendBufferSize(size, false)
	o.SetDelayOption(false)
	c.TCPConn = gonet.NewTCPConn(&c.queue, ep)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ep = ep
	if c.aborted {
		ep.Abort()
	}
}

// PublishUDP leads datagrams that conn receives to a port of the guest's, and its answers back, until the stack is closed. It closes
// conn. To the guest each peer outside is a port of ours.
func (s *Stack) PublishUDP(conn *net.UDPConn, port uint16) {
	s.work.Go(func() { <-s.ctx.Done(); conn.Close() })
	s.work.Go(func() {
		peers := map[netip.AddrPort]*session{}
		next := uint16(ephemeral)
		b := make([]byte, scratch)
		for {
			n, peer, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil {
				return
			}
			if err != nil {
				continue // about a datagram that we sent
			}
			p := peers[peer]
			if p == nil || p.over() {
				if p = s.welcome(peers, conn, peer, port, &next); p == nil {
					s.count.overload.Add(1)
					continue
				}
			}
			s.flows.moved(p.flow, 0, n)
			s.datagram(p.key.remote, netip.AddrPortFrom(s.guestAddr(), port), b[:n])
		}
	})
}

func (s *Stack) guestAddr() netip.Addr {
	guest, _ := s.inside()
	return guest
}

// welcome makes a session for a peer outside, from the next port of ours that is free; nil when there are too many.
func (s *Stack) welcome(peers map[netip.AddrPort]*session, conn *net.UDPConn, peer netip.AddrPort, port uint16, next *uint16) *session {
	for a, p := range peers {
		if p.over() {
			delete(peers, a)
		}
	}
	if len(peers) >= publishedPeers {
		return nil
	}
	_, gateway := s.inside()
	for range 1<<16 - ephemeral {
		key := sessionKey{policy.UDP, port, netip.AddrPortFrom(gateway, *next)}
		if *next++; *next < ephemeral {
			*next = ephemeral
		}
		out := func(n *session, payload []byte) {
			if _, err := conn.WriteToUDPAddrPort(payload, peer); err == nil {
				s.flows.moved(n.flow, len(payload), 0)
			}
		}
		if p := s.open(&session{key: key, verdict: published, out: out}, func() {}, func(n *session) { <-n.done }); p != nil {
			peers[peer] = p
			return p
		}
		if s.sessions.get(key) == nil {
			return nil // not for the port's sake
		}
	}
	return nil
}
