package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pools are the ranges that IPv4 subnets are picked from, each of subnetBits: room for a thousand sandboxes. Container engines
// take theirs from 172.16/12 and 10.88/16, routers at home from 192.168/16 and the beginning of 10/8.
var pools = []netip.Prefix{
	netip.MustParsePrefix("10.213.0.0/16"), netip.MustParsePrefix("10.182.0.0/16"), netip.MustParsePrefix("172.30.0.0/16"),
	netip.MustParsePrefix("192.168.192.0/18"),
}

const subnetBits = 22

// pickSubnets chooses a subnet of each family that overlaps none of taken.
func pickSubnets(taken []netip.Prefix, ipv6 bool) ([]netip.Prefix, error) {
	v4, err := pick4(taken)
	if err != nil || !ipv6 {
		return []netip.Prefix{v4}, err
	}
	v6, err := pick6(taken, func(b []byte) { rand.Read(b) })
	return []netip.Prefix{v4, v6}, err
}

func pick4(taken []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		for a := pool.Addr(); pool.Contains(a); a = add4(a, 1<<(32-subnetBits)) {
			if p := netip.PrefixFrom(a, subnetBits); !overlapsAny(p, taken) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("pick subnet: the host has routes to all that there are to pick from: give one with spore network create --subnet PREFIX")
}

func add4(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += n
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// pick6 makes a unique local prefix as RFC 4193 §3.2 says: fd, 40 random bits, and a subnet of 16 bits, 0 here.
func pick6(taken []netip.Prefix, random func([]byte)) (netip.Prefix, error) {
	for range 16 {
		a := [16]byte{0: 0xfd}
		random(a[1:6])
		if p := netip.PrefixFrom(netip.AddrFrom16(a), 64); !overlapsAny(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("pick subnet: no free IPv6 prefix found: give one with spore network create --subnet PREFIX")
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

// hostPrefixes are the destinations that the host has routes to, in any of its tables, but for those of one interface and
// for default routes.
func hostPrefixes(except string) ([]netip.Prefix, error) {
	own := -1
	if l, err := netlink.LinkByName(except); except != "" && err == nil {
		own = l.Attrs().Index
	}
	var all []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the host's routes: %w", err)
		}
		for _, r := range routes {
			if r.LinkIndex == own || r.Dst == nil {
				continue
			}
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			if p := netip.PrefixFrom(a.Unmap(), ones); ok && p.IsValid() && ones > 0 && !a.IsMulticast() && !a.IsLinkLocalUnicast() {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// firstHost is the first address of a subnet that a host can have.
func firstHost(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// checkSubnets judges what a user says of a network's addresses, and completes the gateways.
func checkSubnets(subnets []netip.Prefix, gateways []netip.Addr) ([]netip.Prefix, []netip.Addr, error) {
	var masked []netip.Prefix
	have := map[bool]netip.Prefix{}
	for _, p := range subnets {
		v4 := p.Addr().Is4()
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified():
			return nil, nil, fmt.Errorf("subnet %s: not one that hosts can be on", p)
		case have[v4].IsValid():
			return nil, nil, fmt.Errorf("subnet %s: there is one of its family already: %s", p, have[v4])
		case v4 && (p.Bits() < 8 || p.Bits() > 30), !v4 && (p.Bits() < 32 || p.Bits() > 126):
			return nil, nil, fmt.Errorf("subnet %s: its length must be 8 to 30, or 32 to 126 for IPv6", p)
		}
		have[v4] = p.Masked()
		masked = append(masked, p.Masked())
	}
	given := map[bool]netip.Addr{}
	for _, g := range gateways {
		p, ok := have[g.Is4()]
		if !ok || !p.Contains(g) || g == p.Addr() || given[g.Is4()].IsValid() {
			return nil, nil, fmt.Errorf("gateway %s: not an address of one of the subnets %v, or a second one", g, masked)
		}
		given[g.Is4()] = g
	}
	var all []netip.Addr
	for _, p := range masked {
		g := given[p.Addr().Is4()]
		if !g.IsValid() {
			g = firstHost(p)
		}
		all = append(all, g)
	}
	return masked, all, nil
}

// checkRanges judges which parts of the subnets are for sandboxes.
func checkRanges(subnets []netip.Prefix, ranges []AddrRange) ([]AddrRange, error) {
	seen := map[bool]bool{}
	for _, r := range ranges {
		i := slices.IndexFunc(subnets, func(p netip.Prefix) bool { return p.Contains(r.First) && p.Contains(r.Last) })
		if i < 0 || r.Last.Less(r.First) || seen[r.First.Is4()] {
			return nil, fmt.Errorf("range %s-%s: not inside one of the subnets %v, from its end to its beginning, or a second one", r.First, r.Last, subnets)
		}
		seen[r.First.Is4()] = true
	}
	return ranges, nil
}
