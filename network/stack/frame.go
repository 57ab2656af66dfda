package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// What comes before an IP packet in a frame.
const (
	vnetSize     = 12 // struct virtio_net_hdr with num_buffers (virtio 1.2 §5.1.6)
	ethernetSize = header.EthernetMinimumSize
	linkSize     = vnetSize + ethernetSize

	maxPacket = 65535 // bytes that an IPv4 header can say
)

// Fields of virtio_net_hdr (virtio 1.2 §5.1.6).
const (
	vnetNeedsChecksum = 1 // flags: VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetChecksumStart = 6 // offset of csum_start, from the beginning of the frame
	vnetChecksumAt    = 8 // offset of csum_offset, from csum_start
)

// fate is what becomes of a frame from the guest.
type fate uint8

const (
	deliver   fate = iota // TCP and UDP: to the TCP/IP stack
	echo                  // an ICMP echo request that is not for us
	echoUs                // an ICMP echo request for a gateway's address
	solicit               // the guest asks who has an address of ours: ARP or neighbour discovery
	malformed             // not what it says it is
	spoofed               // not from the guest's own addresses
	unwanted              // nothing that is ever forwarded, and nobody would expect an answer
	refuse                // nothing that is ever forwarded: admin-prohibited
)

// link is the two ends of the guest's link.
type link struct {
	guestMAC, gatewayMAC [6]byte
	guest4, guest6       netip.Addr // invalid: none of that family
	gateway4, gateway6   netip.Addr
}

// judgement is a frame's fate and what was read on the way to it.
type judgement struct {
	fate     fate
	packet   []byte // the IP packet, cut to the length it says; the ARP packet for solicit
	source   netip.Addr
	target   netip.Addr // destination, or the address solicited
	protocol uint8      // transport's number
	payload  []byte     // of IP: the transport's header and what follows. Of a fragment it is not looked at
}

// judge reads a frame that the guest sent: what comes before the packet, and the packet. It decides from these alone, keeps nothing,
// and is bounded by their length.
func (l *link) judge(head, packet []byte) judgement {
	if len(head) != linkSize || len(packet) > maxPacket || !validVnet(head, len(packet)) {
		return judgement{fate: malformed}
	}
	ethernet := head[vnetSize:]
	if [6]byte(ethernet[6:12]) != l.guestMAC {
		return judgement{fate: spoofed}
	}
	to := [6]byte(ethernet[:6])
	switch kind := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(ethernet[12:])); {
	case kind == header.ARPProtocolNumber:
		return l.judgeARP(packet)
	case kind == header.IPv4ProtocolNumber && to == l.gatewayMAC:
		return l.judgeIPv4(packet)
	case kind == header.IPv6ProtocolNumber && (to == l.gatewayMAC || to[0] == 0x33 && to[1] == 0x33):
		return l.judgeIPv6(packet)
	}
	return judgement{fate: unwanted} // VLAN tags too: whatever is inside is not looked at
}

// validVnet judges the header before the frame. The guest's checksum may be missing: nothing is checked with it, because a frame
// comes out of memory. Its place must be in the frame all the same.
func validVnet(head []byte, packet int) bool {
	if head[0]&vnetNeedsChecksum == 0 {
		return true
	}
	start := int(binary.LittleEndian.Uint16(head[vnetChecksumStart:]))
	at := int(binary.LittleEndian.Uint16(head[vnetChecksumAt:]))
	return start >= ethernetSize && start+at+2 <= ethernetSize+packet
}

// judgeARP lets requests for our address through (RFC 826).
func (l *link) judgeARP(p []byte) judgement {
	arp := header.ARP(p)
	if !arp.IsValid() {
		return judgement{fate: malformed}
	}
	from := netip.AddrFrom4([4]byte(arp.ProtocolAddressSender()))
	target := netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget()))
	switch {
	case [6]byte(arp.HardwareAddressSender()) != l.guestMAC || from != l.guest4 && !from.IsUnspecified():
		return judgement{fate: spoofed}
	case arp.Op() != header.ARPRequest || target != l.gateway4 || from.IsUnspecified():
		return judgement{fate: unwanted} // an announcement, or a probe for the guest's own address
	}
	return judgement{fate: solicit, packet: p[:header.ARPSize], source: from, target: target}
}

func (l *link) judgeIPv4(p []byte) judgement {
	if len(p) < header.IPv4MinimumSize {
		return judgement{fate: malformed}
	}
	ip := header.IPv4(p)
	size, total := int(ip.HeaderLength()), int(ip.TotalLength())
	if p[0]>>4 != 4 || size < header.IPv4MinimumSize || total < size || total > len(p) {
		return judgement{fate: malformed}
	}
	j := judgement{
		packet: p[:total], protocol: ip.Protocol(), payload: p[size:total],
		source: netip.AddrFrom4([4]byte(p[12:16])), target: netip.AddrFrom4([4]byte(p[16:20])),
	}
	fragment := ip.More() || ip.FragmentOffset() != 0
	switch {
	case j.source != l.guest4:
		j.fate = spoofed
	case j.target.IsMulticast() || j.target == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || j.target.IsUnspecified():
		j.fate = unwanted
	case size != header.IPv4MinimumSize:
		j.fate = refuse // options: source routes, above all
	case j.protocol == uint8(header.TCPProtocolNumber) || j.protocol == uint8(header.UDPProtocolNumber):
		j.fate = deliver
	case j.protocol == uint8(header.ICMPv4ProtocolNumber):
		j.fate = l.judgeICMP(&j, fragment, uint8(header.ICMPv4Echo), header.ICMPv4MinimumSize)
	default:
		j.fate = refuse
	}
	return j
}

// judgeICMP knows echo requests. Everything else of ICMP that a guest could say is about packets of ours, and we believe none of it.
func (l *link) judgeICMP(j *judgement, fragment bool, request uint8, size int) fate {
	switch {
	case fragment:
		return refuse
	case len(j.payload) < size:
		return malformed
	case j.payload[0] != request || j.payload[1] != 0:
		return unwanted
	case j.target == l.gateway4 || j.target == l.gateway6:
		return echoUs
	}
	return echo
}

// judgeIPv6 lets a fragment header through and no other extension: what a chain of them may hide is nobody's to find out.
func (l *link) judgeIPv6(p []byte) judgement {
	if len(p) < header.IPv6MinimumSize || p[0]>>4 != 6 {
		return judgement{fate: malformed}
	}
	total := header.IPv6MinimumSize + int(header.IPv6(p).PayloadLength())
	if total > len(p) {
		return judgement{fate: malformed}
	}
	j := judgement{
		packet: p[:total], protocol: p[6], payload: p[header.IPv6MinimumSize:total],
		source: netip.AddrFrom16([16]byte(p[8:24])), target: netip.AddrFrom16([16]byte(p[24:40])),
	}
	fragment := j.protocol == header.IPv6FragmentHeader
	if fragment {
		if len(j.payload) < header.IPv6FragmentHeaderSize {
			return judgement{fate: malformed}
		}
		j.protocol, j.payload = j.payload[0], j.payload[header.IPv6FragmentHeaderSize:]
	}
	if j.protocol == uint8(header.ICMPv6ProtocolNumber) && !fragment && len(j.payload) > 0 && j.payload[0] == uint8(header.ICMPv6NeighborSolicit) {
		return l.judgeSolicit(j)
	}
	switch {
	case j.source != l.guest6:
		j.fate = spoofed
		if j.source.IsLinkLocalUnicast() || j.source.IsUnspecified() {
			j.fate = unwanted // what every guest's kernel says when an interface comes up
		}
	case j.target.IsMulticast() || j.target.IsUnspecified():
		j.fate = unwanted
	case j.target.Is4In6():
		j.fate = refuse // no IPv6 address that could be reached, and an IPv4 address in disguise
	case j.protocol == uint8(header.TCPProtocolNumber) || j.protocol == uint8(header.UDPProtocolNumber):
		j.fate = deliver
	case j.protocol == uint8(header.ICMPv6ProtocolNumber):
		j.fate = l.judgeICMP(&j, fragment, uint8(header.ICMPv6EchoRequest), header.ICMPv6EchoMinimumSize)
	default:
		j.fate = refuse
	}
	return j
}

// judgeSolicit lets solicitations of our address through (RFC 4861 §7.1.1).
func (l *link) judgeSolicit(j judgement) judgement {
	if len(j.payload) < header.ICMPv6NeighborSolicitMinimumSize || header.IPv6(j.packet).HopLimit() != header.NDPHopLimit {
		return judgement{fate: malformed}
	}
	target := netip.AddrFrom16([16]byte(j.payload[8:24]))
	switch {
	case target != l.gateway6 || j.source.IsUnspecified():
		return judgement{fate: unwanted}
	case j.source != l.guest6 && !j.source.IsLinkLocalUnicast():
		return judgement{fate: spoofed}
	}
	j.fate, j.target = solicit, target
	return j
}
