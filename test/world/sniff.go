package world

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// sniff records every packet that comes in from this machine, whether anybody answers it or not.
func sniff(r *recorder) error {
	out, err := net.InterfaceByName("out")
	if err != nil {
		return err
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: out.Index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				r.add(Reached{Kind: "packet", Text: "the record ends: " + err.Error()})
				return
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING {
				if x, ok := packet(b[:n]); ok {
					r.add(x)
				}
			}
		}
	}()
	return nil
}

// protocols by number (IANA).
var protocols = map[byte]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 44: "fragment"}

// packet says what an IP packet is; nothing of those that every link has by itself: neighbour discovery and multicast.
func packet(b []byte) (Reached, bool) {
	x := Reached{Kind: "packet"}
	var rest []byte
	var number byte
	var to netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		number, to = b[9], netip.AddrFrom4([4]byte(b[16:20]))
		if head := int(b[0]&15) * 4; head <= len(b) {
			rest = b[head:]
		}
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			x.Text = "fragment"
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		number, to, rest = b[6], netip.AddrFrom16([16]byte(b[24:40])), b[40:]
	default:
		return x, false // ARP
	}
	if to.IsMulticast() || to.IsLinkLocalUnicast() && to.Is6() {
		return x, false
	}
	x.Protocol = protocols[number]
	if x.Protocol == "" {
		x.Protocol = fmt.Sprintf("protocol %d", number)
	}
	var port uint16
	if (number == 6 || number == 17) && len(rest) >= 4 {
		port = binary.BigEndian.Uint16(rest[2:])
	}
	if number == 58 && len(rest) > 0 && rest[0] >= 133 && rest[0] <= 137 {
		return x, false
	}
	x.Destination = netip.AddrPortFrom(to, port)
	return x, true
}
