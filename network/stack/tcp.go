package stack

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"spore/network/policy"
	"spore/network/proxy"
)

// syns is the beginnings of packets that asked for connections which are being dialled, for the ICMP error that one may end in. It is
// bounded like these.
type syns struct {
	max int
	mu  sync.Mutex
	all map[stack.TransportEndpointID][]byte
}

func (s *syns) init(limit int) { s.max, s.all = limit, map[stack.TransportEndpointID][]byte{} }

func (s *syns) put(id stack.TransportEndpointID, packet []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) < s.max {
		s.all[id] = packet
	}
}

func (s *syns) take(id stack.TransportEndpointID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.all[id]
	delete(s.all, id)
	return p
}

// begin is the beginning of the guest's packet: its headers.
func begin(pkt *stack.PacketBuffer) []byte {
	network, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	return append(append(make([]byte, 0, len(network)+len(transport)), network...), transport...)
}

// handleTCP is given the segments that belong to no connection. It is called by the reader.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false // a reset is the answer
	}
	f := policy.Flow{Protocol: policy.TCP, Destination: addrPort(id.LocalAddress, id.LocalPort)}
	source := addrPort(id.RemoteAddress, id.RemotePort)
	if s.isGateway(f.Destination.Addr()) {
		if f.Destination.Port() != dnsPort || s.cfg.Resolver == nil {
			return false
		}
		return s.tcp.HandlePacket(id, pkt)
	}
	v := s.cfg.Policy.Connect(f, s.cfg.Names)
	if v.Action == policy.Deny && !s.cfg.Proxy.Answers(f) {
		s.denied(f, v, "")
		s.send(s.guest.prohibited(nil, begin(pkt), source.Addr()))
		return true
	}
	s.syns.put(id, begin(pkt))
	return s.tcp.HandlePacket(id, pkt)
}

// denied notes a denial.
func (s *Stack) denied(f policy.Flow, v policy.Verdict, name string) {
	s.count.denied.Add(1)
	s.cfg.Record(policy.Event{Action: policy.Deny, Protocol: f.Protocol, Destination: f.Destination, Name: name, Rule: v.Rule, Reason: v.Reason})
}

// ended notes a flow that was allowed.
func (s *Stack) ended(f *flow, v policy.Verdict, name string) {
	s.cfg.Record(policy.Event{Action: policy.Allow, Protocol: f.Protocol, Destination: f.Destination, Name: name, Rule: v.Rule,
		Sent: f.sent.Load(), Received: f.received.Load(), Duration: time.Since(f.began)})
}

// forwardTCP makes one connection of the guest's, and serves it until its end. The forwarder calls it in a goroutine of its own, for no
// more at once than Limits.Opening that are not made yet.
func (s *Stack) forwardTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	syn := s.syns.take(id)
	f := policy.Flow{Protocol: policy.TCP, Destination: addrPort(id.LocalAddress, id.LocalPort)}
	c := &connection{stack: s}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	if c.flow = s.flows.add(f, s.cfg.Limits.TCPIdle, func() { cancel(); c.abort() }); c.flow == nil {
		s.count.overload.Add(1)
		r.Complete(true)
		return
	}
	defer s.flows.remove(c.flow)
	if s.isGateway(f.Destination.Addr()) {
		if c.accept(r) {
			s.serveDNS(ctx, c)
			c.close()
		}
		return
	}
	v := s.cfg.Policy.Connect(f, s.cfg.Names)
	if v.Action != policy.Allow || s.cfg.Proxy.Wants(f) {
		if c.accept(r) {
			s.look(ctx, c, v)
		}
		return
	}
	outside, err := s.dial(ctx, f)
	if err != nil {
		s.refuseDial(r, err, syn)
		return
	}
	if !c.accept(r) {
		outside.Close()
		return
	}
	s.count.flows.Add(1)
	c.join(outside, nil)
	s.ended(c.flow, v, "")
}

func (s *Stack) dial(ctx context.Context, f policy.Flow) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Limits.DialTimeout, os.ErrDeadlineExceeded)
	defer cancel()
	c, err := s.cfg.Dialer.TCP(ctx, f.Destination)
	if err != nil {
		s.count.failed.Add(1)
	}
	return c, err
}

// refuseDial tells the guest what came of a connection that it may have: what it would see if it had asked itself.
func (s *Stack) refuseDial(r *tcp.ForwarderRequest, err error, syn []byte) {
	from := addrPort(r.ID().RemoteAddress, 0).Addr()
	code4, code6 := uint8(header.ICMPv4HostUnreachable), uint8(header.ICMPv6AddressUnreachable)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || syn == nil:
		r.Complete(true)
		return
	case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT):
		code4, code6 = uint8(header.ICMPv4NetUnreachable), uint8(header.ICMPv6NetworkUnreachable)
	case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM): // a filter of the host's
		code4, code6 = 13, uint8(header.ICMPv6Prohibited)
	}
	r.Complete(false)
	s.send(s.guest.unreachable(nil, syn, from, code4, code6))
}

// look lets the proxy look into a connection, which is made already on the guest's side.
func (s *Stack) look(ctx context.Context, c *connection, v policy.Verdict) {
	out := s.cfg.Proxy.Serve(ctx, proxy.Connection{
		Flow: c.flow.Flow, Verdict: v, Guest: c,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			outside, err := s.dial(ctx, c.flow.Flow)
			c.leadsTo(outside)
			return outside, err
		},
		Join: func(outside *net.TCPConn, head []byte) { c.join(outside, head) },
	})
	switch {
	case out.Verdict.Action == policy.Deny:
		s.denied(c.flow.Flow, out.Verdict, out.Name)
	case out.Err == nil:
		s.count.flows.Add(1)
		s.ended(c.flow, out.Verdict, out.Name)
	}
	if out.Err != nil {
		c.abort()
	} else {
		c.close()
	}
}

// connection is the guest's side of a TCP connection.
type connection struct {
	stack *Stack
	flow  *flow
	queue waiter.Queue
	*gonet.TCPConn

	mu      sync.Mutex
	ep      tcpip.Endpoint
	outside *net.TCPConn
	aborted bool
	ended   bool
}

// accept completes the guest's handshake. It reports whether there is a connection then.
func (c *connection) accept(r *tcp.ForwarderRequest) bool {
	ep, err := r.CreateEndpoint(&c.queue)
	r.Complete(err != nil)
	if err != nil {
		return false
	}
	c.attach(ep)
	return true
}

// leadsTo notes the other side, which abort closes.
func (c *connection) leadsTo(outside *net.TCPConn) {
	c.mu.Lock()
	c.outside = outside
	aborted := c.aborted
	c.mu.Unlock()
	if aborted {
		c.abort()
	}
}

// abort resets both sides. It may be called at any moment.
func (c *connection) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aborted = true
	if c.ep != nil && !c.ended {
		c.ep.Abort()
	}
	if c.outside != nil {
		// A reset, not an end: what was sent up to here is not all of it. The socket may be closed already.
		_ = c.outside.SetLinger(0)
		_ = c.outside.Close()
	}
}

// Read implements net.Conn for the proxy.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.stack.flows.moved(c.flow, n, 0)
	return n, err
}

// Write implements net.Conn for the proxy.
func (c *connection) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.stack.flows.moved(c.flow, 0, n)
	return n, err
}

// Close implements net.Conn. What is left to send is sent, by close.
func (c *connection) Close() error { return c.CloseWrite() }

// close ends the guest's side and waits until nothing of it is left: until then it counts as open, or a guest that takes
// nothing could have any number of them.
func (c *connection) close() {
	entry, gone := waiter.NewChannelEntry(waiter.EventHUp | waiter.EventErr)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	c.ep.Close()
	patience := time.NewTimer(closing)
	defer patience.Stop()
	for over := false; !over; {
		switch tcp.EndpointState(c.ep.State()) {
		case tcp.StateClose, tcp.StateError, tcp.StateInitial, tcp.StateTimeWait:
			over = true
			continue
		}
		select {
		case <-gone:
		case <-c.flow.done:
			over = true
		case <-patience.C:
			over = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if state := tcp.EndpointState(c.ep.State()); state != tcp.StateTimeWait {
		c.ep.Abort()
	}
	c.ended = true
}
