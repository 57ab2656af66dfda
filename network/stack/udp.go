package stack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"net/netip"

	"spore/network/policy"
)

// handleUDP is given every datagram of the guest's. It is called by the reader.
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	data := pkt.Data().AsRange().ToSlice()
	if len(h) < header.UDPMinimumSize || int(h.Length()) < header.UDPMinimumSize || int(h.Length())-header.UDPMinimumSize > len(data) {
		s.count.malformed.Add(1)
		return true
	}
	data = data[:int(h.Length())-header.UDPMinimumSize]
	guest, remote := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	key := sessionKey{policy.UDP, guest.Port(), remote}
	if n := s.sessions.get(key); n != nil {
		n.out(n, data)
		return true
	}
	if s.isGateway(remote.Addr()) {
		if remote.Port() == dnsPort && s.cfg.Resolver != nil {
			s.ask(guest, remote, data)
			return true
		}
		s.send(s.guest.unreachable(nil, begin(pkt), guest.Addr(), uint8(header.ICMPv4PortUnreachable), uint8(header.ICMPv6PortUnreachable)))
		return true
	}
	f := policy.Flow{Protocol: policy.UDP, Destination: remote}
	v := s.cfg.Policy.Connect(f, s.cfg.Names)
	if v.Action != policy.Allow {
		s.denied(f, v, "")
		s.send(s.guest.prohibited(nil, begin(pkt), guest.Addr()))
		return true
	}
	socket, err := s.cfg.Dialer.UDP(remote)
	if err != nil {
		s.count.failed.Add(1)
		s.send(s.guest.unreachable(nil, begin(pkt), guest.Addr(), uint8(header.ICMPv4NetUnreachable), uint8(header.ICMPv6NetworkUnreachable)))
		return true
	}
	n := s.start(key, v, socket, begin(pkt), func(n *session) {
		s.receiveAll(n, func(p []byte) { s.datagram(remote, guest, p) }, func() {
			s.send(s.guest.unreachable(nil, n.quote, guest.Addr(), uint8(header.ICMPv4PortUnreachable), uint8(header.ICMPv6PortUnreachable)))
		})
	})
	if n == nil {
		s.count.overload.Add(1)
		return true
	}
	n.out(n, data)
	return true
}

// datagram gives the guest a datagram.
func (s *Stack) datagram(from, to netip.AddrPort, payload []byte) {
	number, size := header.IPv4ProtocolNumber, header.IPv4MinimumSize
	if from.Addr().Is6() {
		number, size = header.IPv6ProtocolNumber, header.IPv6MinimumSize
	}
	if size+header.UDPMinimumSize+len(payload) > maxPacket {
		return // what Linux never gives a socket
	}
	r, err := s.net.FindRoute(nic, address(from.Addr()), address(to.Addr()), number, false)
	if err != nil {
		return // the stack is being closed
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()), Payload: buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	length := uint16(header.UDPMinimumSize + len(payload))
	h.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: length})
	if size+int(length) > s.cfg.MTU { // it leaves in fragments, whose checksum nobody can fill in
		sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, r.LocalAddress(), r.RemoteAddress(), length)
		sum = ^h.CalculateChecksum(checksum.Combine(sum, checksum.Checksum(payload, 0)))
		if sum == 0 {
			sum = 0xffff // 0 is none (RFC 768)
		}
		h.SetChecksum(sum)
	}
	// An error is a frame that the guest did not take, which is counted.
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.UDPProtocolNumber, TTL: hops, TOS: stack.DefaultTOS}, pkt)
}
