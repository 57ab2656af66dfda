package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Published is a port of the host that leads to one of the guest. The zero value is none.
type Published struct {
	Protocol string         `json:"protocol"` // tcp or udp
	Host     netip.AddrPort `json:"host"`     // that is listened on; port 0 is any that is free
	Guest    uint16         `json:"guest"`    // port, not 0
}

// String is p as ParsePublished reads it.
func (p Published) String() string {
	s := p.Host.String() + ":" + strconv.Itoa(int(p.Guest))
	if p.Protocol != "tcp" {
		s += "/" + p.Protocol
	}
	return s
}

// loopback is where a port is published that names no address: whoever wants others to reach it says so.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// ParsePublished reads [ADDRESS:]HOST:GUEST[/tcp|/udp], where an IPv6 ADDRESS stands in brackets.
func ParsePublished(s string) (Published, error) {
	p := Published{Protocol: "tcp"}
	rest, protocol, named := strings.Cut(s, "/")
	if named {
		p.Protocol = protocol
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return p, fmt.Errorf("%q: %q is no protocol that can be published: use tcp or udp", s, protocol)
	}
	at := strings.LastIndexByte(rest, ':')
	if at < 0 {
		return p, fmt.Errorf("%q: use [ADDRESS:]HOST:GUEST[/udp], as in 8080:80", s)
	}
	host, guest := rest[:at], rest[at+1:]
	port, err := strconv.ParseUint(guest, 10, 16)
	if err != nil || port == 0 {
		return p, fmt.Errorf("%q: %q is no port of the guest: use 1 to 65535", s, guest)
	}
	p.Guest = uint16(port)
	address := loopback
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		text := strings.TrimSuffix(strings.TrimPrefix(host[:i], "["), "]")
		if address, err = netip.ParseAddr(text); err != nil {
			return p, fmt.Errorf("%q: %q is no address: use an IPv4 address, or an IPv6 address in brackets", s, text)
		}
		host = host[i+1:]
	}
	if port, err = strconv.ParseUint(host, 10, 16); err != nil {
		return p, fmt.Errorf("%q: %q is no port of the host: use 1 to 65535, or 0 for any", s, host)
	}
	p.Host = netip.AddrPortFrom(address, uint16(port))
	return p, nil
}
