package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Frames that are made here, for what the TCP/IP stack never sees: neighbours and ICMP. All are appended to b, an empty buffer.

// quoted bounds what an ICMP error repeats of the packet it is about, so that the whole fits the smallest MTU there is (RFC 1812
// §4.3.2.3, RFC 4443 §2.4).
const quoted = 500

const hops = 64 // TTL and hop limit of what we send

// head appends what comes before an IP packet. Without flags, no checksum is left to the guest.
func (l *link) head(b []byte, kind tcpip.NetworkProtocolNumber) []byte {
	var vnet [vnetSize]byte
	b = append(b, vnet[:]...)
	b = append(b, l.guestMAC[:]...)
	b = append(b, l.gatewayMAC[:]...)
	return binary.BigEndian.AppendUint16(b, uint16(kind))
}

// neighbour answers a solicit judgement.
func (l *link) neighbour(b []byte, j judgement) []byte {
	if j.target.Is4() {
		b = l.head(b, header.ARPProtocolNumber)
		at := len(b)
		b = append(b, make([]byte, header.ARPSize)...)
		arp := header.ARP(b[at:])
		arp.SetIPv4OverEthernet()
		arp.SetOp(header.ARPReply)
		copy(arp.HardwareAddressSender(), l.gatewayMAC[:])
		copy(arp.ProtocolAddressSender(), j.target.AsSlice())
		copy(arp.HardwareAddressTarget(), l.guestMAC[:])
		copy(arp.ProtocolAddressTarget(), j.source.AsSlice())
		return b
	}
	const size = header.ICMPv6NeighborAdvertMinimumSize + 8 // and one option: our address on the link
	body := make([]byte, size)
	advert := header.NDPNeighborAdvert(header.ICMPv6(body).MessageBody())
	body[0] = uint8(header.ICMPv6NeighborAdvert)
	advert.SetTargetAddress(tcpip.AddrFrom16(j.target.As16()))
	advert.SetRouterFlag(true)
	advert.SetSolicitedFlag(true)
	advert.SetOverrideFlag(true)
	advert.Options().Serialize(header.NDPOptionsSerializer{header.NDPTargetLinkLayerAddressOption(l.gatewayMAC[:])})
	return l.icmp(b, j.target, j.source, header.NDPHopLimit, body)
}

// prohibited says that a packet may not go where it wants to: destination unreachable, communication administratively prohibited (RFC
// 1812 §5.2.7.1 code 13, RFC 4443 §3.1 code 1). packet is the guest's.
func (l *link) prohibited(b []byte, packet []byte, from netip.Addr) []byte {
	return l.unreachable(b, packet, from, 13, uint8(header.ICMPv6Prohibited))
}

// unreachable is the same with another code for each family.
func (l *link) unreachable(b []byte, packet []byte, from netip.Addr, code4, code6 uint8) []byte {
	body := make([]byte, 8, 8+quoted)
	body[0], body[1] = uint8(header.ICMPv4DstUnreachable), code4
	us := l.gateway4
	if from.Is6() {
		body[0], body[1] = uint8(header.ICMPv6DstUnreachable), code6
		us = l.gateway6
	}
	return l.icmp(b, us, from, hops, append(body, packet[:min(len(packet), quoted)]...))
}

// pong answers the echo request whose ICMP message is request, in the name of from.
func (l *link) pong(b []byte, from, to netip.Addr, request []byte) []byte {
	body := append(make([]byte, 0, len(request)), request...)
	body[0] = uint8(header.ICMPv4EchoReply)
	if from.Is6() {
		body[0] = uint8(header.ICMPv6EchoReply)
	}
	return l.icmp(b, from, to, hops, body)
}

// icmp wraps an ICMP message, whose checksum is filled in, into a packet and a frame.
func (l *link) icmp(b []byte, from, to netip.Addr, limit uint8, body []byte) []byte {
	body[2], body[3] = 0, 0
	if from.Is4() {
		b = l.head(b, header.IPv4ProtocolNumber)
		at := len(b)
		b = append(b, make([]byte, header.IPv4MinimumSize)...)
		ip := header.IPv4(b[at:])
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(header.IPv4MinimumSize + len(body)), TTL: limit, Protocol: uint8(header.ICMPv4ProtocolNumber),
			SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		header.ICMPv4(body).SetChecksum(^checksum.Checksum(body, 0))
		return append(b, body...)
	}
	b = l.head(b, header.IPv6ProtocolNumber)
	at := len(b)
	b = append(b, make([]byte, header.IPv6MinimumSize)...)
	source, destination := tcpip.AddrFrom16(from.As16()), tcpip.AddrFrom16(to.As16())
	header.IPv6(b[at:]).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(body)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: limit, SrcAddr: source, DstAddr: destination,
	})
	pseudo := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, source, destination, uint16(len(body)))
	header.ICMPv6(body).SetChecksum(^checksum.Checksum(body, pseudo))
	return append(b, body...)
}
