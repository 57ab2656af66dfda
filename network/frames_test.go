package network

import (
	"encoding/binary"
	"net/netip"
)

// What guests write to their taps, byte by byte.

var (
	broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger  = MAC{0x02, 0x66, 0x66, 0x66, 0x66, 0x66}
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// ether is a frame without padding; a tag or two may stand before the type.
func ether(dst, src MAC, typ int, payload ...[]byte) []byte {
	return join(dst, src, be16(typ), join(payload...))
}

func sum16(parts ...[]byte) []byte {
	var s uint32
	b := join(parts...)
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return be16(int(^s & 0xffff))
}

// ipv4 is a packet of a protocol; options must be a multiple of four bytes.
func ipv4(src, dst string, protocol byte, options []byte, payload ...[]byte) []byte {
	body := join(payload...)
	h := join([]byte{0x45 + byte(len(options)/4), 0}, be16(20+len(options)+len(body)), []byte{0, 1, 0, 0, 64, protocol, 0, 0}, addr(src), addr(dst), options)
	copy(h[10:], sum16(h))
	return append(h, body...)
}

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// ipv6 is a packet whose first header after the fixed one is next.
func ipv6(src, dst string, next, hops byte, payload ...[]byte) []byte {
	body := join(payload...)
	return join([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{next, hops}, addr(src), addr(dst), body)
}

func udp(from, to int, payload string) []byte {
	return join(be16(from), be16(to), be16(8+len(payload)), []byte{0, 0}, []byte(payload))
}

// icmp6 is a message with its checksum.
func icmp6(src, dst string, typ, code byte, rest ...[]byte) []byte {
	body := join(rest...)
	m := join([]byte{typ, code, 0, 0}, body)
	pseudo := join(addr(src), addr(dst), []byte{0, 0}, be16(len(m)), []byte{0, 0, 0, 58})
	copy(m[2:], sum16(pseudo, m))
	return m
}

func arp(op int, senderMAC MAC, sender string, targetMAC MAC, target string) []byte {
	return join([]byte{0, 1, 8, 0, 6, 4}, be16(op), senderMAC, addr(sender), targetMAC, addr(target))
}

// Options and headers that are eight bytes long.
func linkOption(kind byte, mac MAC) []byte { return join([]byte{kind, 1}, mac) }
func nonce() []byte                        { return []byte{14, 1, 1, 2, 3, 4, 5, 6} }
func fragment(next byte, units, id int, more bool) []byte {
	flag := 0
	if more {
		flag = 1
	}
	return join([]byte{next, 0}, be16(units<<3|flag), []byte{0, 0}, be16(id))
}
func destinationOptions(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
func routerAlert(next byte) []byte        { return []byte{next, 0, 5, 2, 0, 0, 1, 0} }
