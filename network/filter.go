package network

import (
	"fmt"
	"net/netip"
	"strings"
)

// metadata4 and metadata6 are where clouds tell a machine who it is and give it credentials: all of IPv4's link-local range, which
// most use, and those outside it of Alibaba, Azure and Oracle; of Amazon, Google, Oracle and OpenStack in IPv6. No guest reaches them
// over a switched network.
const (
	linkLocal4 = "169.254.0.0/16"
	metadata4  = "100.100.100.200, 168.63.129.16, 192.0.0.192"
	metadata6  = "fd00:ec2::254, fd00:ec2::23, fd20:ce::254, fd00:c1::a9fe:a9fe, fe80::a9fe:a9fe"
)

// guestRules is the ruleset in a switched attachment's namespace, which is the join of the tap to the plugin's interface and the
// filter on it. Both hooks see a frame as the driver gave it, a segmented one whole, and fwd queues that very frame on the other
// interface: nothing is copied or cut up.
//
// The tap is judged by the Ethernet type that the frame begins with (ether type, not meta protocol): the kernel takes a VLAN tag off
// before the hook, and a tagged frame would pass for what is behind the tag otherwise (NET-07).
func guestRules(mac MAC, addresses []netip.Prefix) string {
	var own4, own6 []string
	for _, p := range addresses {
		if p.Addr().Is4() {
			own4 = append(own4, p.Addr().String())
		} else {
			own6 = append(own6, p.Addr().String())
		}
	}
	own6 = append(own6, linkLocal(mac).String())
	var b strings.Builder
	fmt.Fprintf(&b, guestBegin, guestInterface, tapInterface, mac)
	writeARP(&b, mac, own4)
	writeIPv4(&b, own4)
	writeIPv6(&b, mac, own6)
	b.WriteString("}\n")
	return b.String()
}

const guestBegin = `table netdev spore {
	counter from_guest { }
	counter to_guest { }
	counter spoofed { }
	counter denied { }
	counter foreign { }

	chain pass {
		counter name from_guest fwd to "%[1]s"
	}
	chain spoof {
		counter name spoofed drop
	}
	chain deny {
		counter name denied drop
	}

	chain to_guest {
		type filter hook ingress device "%[1]s" priority 0; policy drop;
		ether type { ip, ip6, arp } ether daddr %[3]s counter name to_guest fwd to "%[2]s"
		ether type { ip, ip6, arp } ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 counter name to_guest fwd to "%[2]s"
		counter name foreign drop
	}

	chain from_guest {
		type filter hook ingress device "%[2]s" priority 0; policy drop;
		ether saddr != %[3]s goto spoof
		ether type ip goto from_ip4
		ether type ip6 goto from_ip6
		ether type arp goto from_arp
		goto deny
	}
`

// writeARP lets a guest ask and answer for its own addresses, and probe for them from 0.0.0.0 (RFC 5227).
func writeARP(b *strings.Builder, mac MAC, own []string) {
	b.WriteString("\n\tchain from_arp {\n")
	if len(own) > 0 {
		set := oneOf(own)
		fmt.Fprintf(b, "\t\tarp htype != 1 goto deny\n\t\tarp ptype != ip goto deny\n\t\tarp hlen != 6 goto deny\n\t\tarp plen != 4 goto deny\n")
		fmt.Fprintf(b, "\t\tarp saddr ether != %s goto spoof\n", mac)
		fmt.Fprintf(b, "\t\tarp operation { request, reply } arp saddr ip %s goto pass\n", set)
		fmt.Fprintf(b, "\t\tarp operation request arp saddr ip 0.0.0.0 arp daddr ip %s goto pass\n", set)
	}
	b.WriteString("\t\tgoto spoof\n\t}\n")
}

// writeIPv4 lets a guest send from its own addresses, but not as a DHCP server, a router, a multicast querier, or by a route of its
// own choosing. The last rule wants the kernel to know a protocol (255 is reserved): in a packet that it cannot make out no rule about the
// protocol matches, and it must not pass for that.
func writeIPv4(b *strings.Builder, own []string) {
	b.WriteString("\n\tchain from_ip4 {\n")
	if len(own) > 0 {
		fmt.Fprintf(b, "\t\tip saddr != %s goto spoof\n", oneOf(own))
		fmt.Fprintf(b, "\t\tip daddr %s goto deny\n\t\tip daddr { %s } goto deny\n", linkLocal4, metadata4)
		b.WriteString("\t\tip hdrlength > 5 ip option lsrr exists goto deny\n\t\tip hdrlength > 5 ip option ssrr exists goto deny\n")
		b.WriteString("\t\tip protocol tcp goto pass\n")
		b.WriteString("\t\tip protocol icmp icmp type { redirect, router-advertisement } goto deny\n")
		b.WriteString("\t\tip protocol igmp igmp type membership-query goto deny\n")
		b.WriteString("\t\tip protocol udp udp sport 67 goto deny\n")
		b.WriteString("\t\tmeta l4proto != 255 goto pass\n\t\tgoto deny\n")
	} else {
		b.WriteString("\t\tgoto spoof\n")
	}
	b.WriteString("\t}\n")
}

// ipv6Rules is what a guest may say in IPv6. Of ICMPv6 only what is listed passes. Neighbour messages must have no extension
// header and at most one option, the link-layer address, which must be its own: the length says that there is no second one,
// which a neighbour might believe. A routing header leads elsewhere than the address that is judged. Of a fragment that is not the
// first only the protocol is known; the first one is judged, and without it there is no packet (RFC 8200 §4.5, RFC 5722).
const ipv6Rules = `
	chain from_ip6 {
		ip6 daddr { %[1]s } goto deny
		ip6 saddr :: goto unspecified6
		ip6 saddr != { %[2]s } goto spoof
		ip6 nexthdr tcp goto pass
		exthdr rt exists goto deny
		frag nexthdr != { tcp, udp, ipv6-icmp } goto deny
		meta l4proto ipv6-icmp goto from_icmp6
		meta l4proto udp udp sport 547 goto deny
		meta l4proto != 255 goto pass
		goto deny
	}

	chain from_icmp6 {
		frag frag-off > 0 goto pass
		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply } goto pass
		ip6 hoplimit 1 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } goto pass
		ip6 nexthdr != ipv6-icmp goto deny
		ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit goto solicit6
		ip6 hoplimit 255 icmpv6 type nd-neighbor-advert goto advert6
		goto deny
	}

	chain solicit6 {
		ip6 length 24 goto pass
		ip6 length 32 @th,192,64 0x0101%[3]s goto pass
		goto spoof
	}

	chain unspecified6 {
		ip6 hoplimit 1 icmpv6 type mld2-listener-report goto pass
		ip6 nexthdr != ipv6-icmp goto spoof
		ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit goto probe6
		goto spoof
	}
`

func writeIPv6(b *strings.Builder, mac MAC, own []string) {
	hex := fmt.Sprintf("%x", []byte(mac))
	fmt.Fprintf(b, ipv6Rules, metadata6, strings.Join(own, ", "), hex)
	b.WriteString("\n\tchain probe6 {\n")
	for _, a := range own { // duplicate address detection: no option, or a nonce (RFC 7527)
		fmt.Fprintf(b, "\t\tip6 length 24 @th,64,128 %s goto pass\n", hexAddr(a))
		fmt.Fprintf(b, "\t\tip6 length 32 @th,64,128 %s @th,192,16 0x0e01 goto pass\n", hexAddr(a))
	}
	b.WriteString("\t\tgoto spoof\n\t}\n\n\tchain advert6 {\n")
	for _, a := range own {
		fmt.Fprintf(b, "\t\tip6 length 24 @th,64,128 %s goto pass\n", hexAddr(a))
		fmt.Fprintf(b, "\t\tip6 length 32 @th,64,128 %s @th,192,64 0x0201%s goto pass\n", hexAddr(a), hex)
	}
	b.WriteString("\t\tgoto spoof\n\t}\n")
}

// oneOf is what matches any of a list.
func oneOf(list []string) string {
	if len(list) == 1 {
		return list[0] // a comparison, where a set is a look-up
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

func hexAddr(s string) string {
	a := netip.MustParseAddr(s).As16()
	return fmt.Sprintf("0x%x", a[:])
}

// linkLocal is the address that an interface gives itself by its MAC (RFC 4291 appendix A, RFC 2464 §5).
func linkLocal(mac MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}
