package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"spore/network/policy"
)

// echo sends an echo request on by a ping socket of its own for each identifier and destination. It is called by the reader.
func (s *Stack) echo(j judgement) {
	id := binary.BigEndian.Uint16(j.payload[4:])
	key := sessionKey{policy.ICMP, id, netip.AddrPortFrom(j.target, 0)}
	n := s.sessions.get(key)
	if n == nil {
		f := policy.Flow{Protocol: policy.ICMP, Destination: key.remote}
		v := s.cfg.Policy.Connect(f, s.cfg.Names)
		if v.Action != policy.Allow {
			s.denied(f, v, "")
			s.send(s.guest.prohibited(nil, j.packet, j.source))
			return
		}
		socket, err := s.cfg.Dialer.Ping(j.target)
		if err != nil {
			s.count.failed.Add(1)
			s.send(s.guest.unreachable(nil, j.packet, j.source, uint8(header.ICMPv4NetUnreachable), uint8(header.ICMPv6NetworkUnreachable)))
			return
		}
		target, source := j.target, j.source
		quote := append([]byte(nil), j.packet[:min(len(j.packet), quoted)]...)
		n = s.start(key, v, socket, quote, func(n *session) {
			s.receiveAll(n, func(p []byte) { s.echoed(n, target, source, p) }, func() {})
		})
		if n == nil {
			s.count.overload.Add(1)
			return
		}
	}
	n.out(n, j.payload) // the kernel fills in the identifier and the checksum
}

// echoed gives the guest an echo reply, with the identifier that its request had.
func (s *Stack) echoed(n *session, from, to netip.Addr, message []byte) {
	if len(message) < header.ICMPv4MinimumSize || header.IPv6MinimumSize+len(message) > maxPacket {
		return
	}
	reply := header.ICMPv4EchoReply
	if from.Is6() {
		reply = header.ICMPv4Type(header.ICMPv6EchoReply)
	}
	if message[0] != uint8(reply) {
		return
	}
	binary.BigEndian.PutUint16(message[4:], n.key.guest)
	s.send(s.guest.pong(nil, from, to, message))
}
