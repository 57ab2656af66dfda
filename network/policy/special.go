package policy

import "net/netip"

// class is why an address is denied unless a rule names it. It is what follows "default:" in a verdict.
type class string

const (
	classPublic        class = "" // not special: what "*" means
	classMetadata      class = "metadata"
	classHost          class = "host"
	classSandbox       class = "sandbox"
	classPrivate       class = "private"
	classLoopback      class = "loopback"
	classLinkLocal     class = "link-local"
	classMulticast     class = "multicast"
	classDocumentation class = "documentation"
	classReserved      class = "reserved"
	classTranslation   class = "translation" // IPv4 addresses in IPv6's clothes that no host has a use for
)

// words say what an address of the class is.
var words = map[class]string{
	classMetadata:      "a cloud's metadata or credentials service",
	classHost:          "an address of the host itself",
	classSandbox:       "in a range of other sandboxes",
	classPrivate:       "private",
	classLoopback:      "a loopback address",
	classLinkLocal:     "link-local",
	classMulticast:     "multicast or broadcast",
	classDocumentation: "for documentation only",
	classReserved:      "reserved, not a public address",
	classTranslation:   "in a range for translating IPv4",
}

// special is a range that a rule must name to allow any of it: with a prefix that lies inside it, and for metadata is a single
// address.
type special struct {
	prefix netip.Prefix
	class  class
	inner  netip.Addr // the IPv4 address within that it is about; invalid for the address itself
}

// namedBy reports whether a rule about prefix r names the range.
func (s special) namedBy(r netip.Prefix) bool {
	if s.class == classMetadata && !r.IsSingleIP() {
		return false
	}
	return r.Bits() >= s.prefix.Bits() && s.prefix.Contains(r.Addr())
}

// specials4 and specials6 are what IANA's registries of special-purpose addresses (RFC 6890 as kept up to 2026-11) call not
// globally reachable, the multicast and reserved ranges, and what clouds put at fixed addresses. The longest prefix that
// holds an address counts. A range with classPublic is an exception in a larger one.
var specials4 = ranges(
	"0.0.0.0/8", classReserved, // "this network": on Linux 0.0.0.0 is the host itself
	"10.0.0.0/8", classPrivate,
	"100.64.0.0/10", classPrivate, // carriers' NAT, Tailscale
	"100.100.100.200/32", classMetadata, // Alibaba Cloud
	"127.0.0.0/8", classLoopback,
	"168.63.129.16/32", classMetadata, // Azure's WireServer, though a public address
	"169.254.0.0/16", classLinkLocal,
	"169.254.0.23/32", classMetadata, // Tencent Cloud
	"169.254.42.42/32", classMetadata, // Scaleway
	"169.254.169.0/24", classMetadata, // .254 almost everywhere; .253, .123 and more at Amazon
	"169.254.170.0/24", classMetadata, // Amazon ECS and EKS credentials
	"172.16.0.0/12", classPrivate,
	"192.0.0.0/24", classReserved,
	"192.0.0.192/32", classMetadata, // Oracle Cloud Classic
	"192.0.2.0/24", classDocumentation,
	"192.88.99.0/24", classReserved, // 6to4 relays, RFC 7526
	"192.168.0.0/16", classPrivate,
	"198.18.0.0/15", classPrivate, // benchmarks; VPN programs answer from it
	"198.51.100.0/24", classDocumentation,
	"203.0.113.0/24", classDocumentation,
	"224.0.0.0/4", classMulticast,
	"240.0.0.0/4", classReserved,
	"255.255.255.255/32", classMulticast,
)

var specials6 = ranges(
	// Global unicast is 2000::/3. The other eighths are reserved, but for what follows.
	"::/3", classReserved,
	"4000::/3", classReserved,
	"6000::/3", classReserved,
	"8000::/3", classReserved,
	"a000::/3", classReserved,
	"c000::/3", classReserved,
	"e000::/3", classReserved,
	"::1/128", classLoopback,
	"::ffff:0:0:0/96", classTranslation, // SIIT, RFC 7915
	"64:ff9b::/96", classPublic, // NAT64, RFC 6052: judged by the address within
	"64:ff9b:1::/48", classTranslation, // NAT64 of a network's own, RFC 8215
	"2001::/23", classReserved,
	"2001::/32", classTranslation, // Teredo
	"2001:db8::/32", classDocumentation,
	"2002::/16", classTranslation, // 6to4
	"3fff::/20", classDocumentation,
	"fc00::/7", classPrivate,
	"fd00:42::42/128", classMetadata, // Scaleway
	"fd00:c1::a9fe:a9fe/128", classMetadata, // Oracle Cloud
	"fd00:ec2::/32", classMetadata, // Amazon: ::254, ::253, ::23
	"fd20:ce::254/128", classMetadata, // Google Cloud
	"fe80::/10", classLinkLocal,
	"fe80::a9fe:a9fe/128", classMetadata, // OpenStack
	"fec0::/10", classPrivate, // site-local, RFC 3879
	"ff00::/8", classMulticast,
)

// ranges makes a table from pairs of a prefix and a class.
func ranges(pairs ...any) []special {
	var table []special
	for i := 0; i < len(pairs); i += 2 {
		table = append(table, special{prefix: netip.MustParsePrefix(pairs[i].(string)), class: pairs[i+1].(class)})
	}
	return table
}

// embedding is an IPv6 range whose addresses have an IPv4 address within: something on the way may send the packet there.
type embedding struct {
	prefix netip.Prefix
	offset int  // of the IPv4 address, in bytes
	invert bool // its bits are inverted (Teredo's client, RFC 4380 §4)
}

var embeddings = []embedding{
	{netip.MustParsePrefix("64:ff9b::/96"), 12, false},
	{netip.MustParsePrefix("::/96"), 12, false}, // IPv4-compatible, RFC 4291 §2.5.5.1
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, false},
	{netip.MustParsePrefix("2002::/16"), 2, false},
	{netip.MustParsePrefix("2001::/32"), 4, false}, // Teredo's server
	{netip.MustParsePrefix("2001::/32"), 12, true}, // and its client
}

// address is a destination with everything that has to be known to judge it. There are at most maxForms of both: an
// address is in two embeddings at most.
type address struct {
	addr   netip.Addr // unmapped, without a zone
	within [maxForms]netip.Addr
	ranges [1 + maxForms]special
	forms  int // of within
	count  int // of ranges
}

const maxForms = 2

// look finds the special ranges around a, and around the IPv4 addresses within it.
func (p *Policy) look(a netip.Addr) address {
	a = a.Unmap().WithZone("")
	at := address{addr: a}
	at.add(p.innermost(a))
	if a.Is4() {
		return at
	}
	for _, e := range embeddings {
		at.embed(p, e)
	}
	for _, prefix := range p.around.NAT64 {
		at.embed(p, embedding{prefix, 12, false})
	}
	return at
}

func (at *address) add(s special) {
	if s.class != classPublic && at.count < len(at.ranges) {
		at.ranges[at.count] = s
		at.count++
	}
}

// embed adds what is special about the IPv4 address that e says is within. A rule names it with a prefix that is as long in
// the IPv6 address as the range is in the IPv4 address.
func (at *address) embed(p *Policy, e embedding) {
	if !e.prefix.Contains(at.addr) || at.forms == maxForms {
		return
	}
	b := at.addr.As16()
	v4 := [4]byte(b[e.offset : e.offset+4])
	if e.invert {
		for i := range v4 {
			v4[i] ^= 0xff
		}
	}
	inner := netip.AddrFrom4(v4)
	at.within[at.forms] = inner
	at.forms++
	if s := p.innermost(inner); s.class != classPublic {
		bits := e.offset*8 + s.prefix.Bits()
		if s.class == classMetadata {
			bits = 128
		}
		at.add(special{netip.PrefixFrom(at.addr, bits).Masked(), s.class, inner})
	}
}

// innermost is the longest special range that holds a. The host's addresses and the sandboxes' ranges win over a range of the
// registries that is as long: their words are truer.
func (p *Policy) innermost(a netip.Addr) special {
	table := specials6
	if a.Is4() {
		table = specials4
	}
	best, bits := special{}, -1
	for i := range table {
		if n := table[i].prefix.Bits(); n > bits && table[i].prefix.Contains(a) {
			best, bits = table[i], n
		}
	}
	for _, prefix := range p.around.Sandboxes {
		if prefix.Bits() >= bits && prefix.Contains(a) {
			best, bits = special{prefix: prefix, class: classSandbox}, prefix.Bits()
		}
	}
	if best.class != classMetadata {
		for _, host := range p.around.Host {
			if host == a {
				return special{prefix: netip.PrefixFrom(a, a.BitLen()), class: classHost}
			}
		}
	}
	return best
}

// namedBy reports whether a rule about prefix r names every special range around the address, or there is none.
func (at *address) namedBy(r netip.Prefix) bool {
	for _, s := range at.ranges[:at.count] {
		if !s.namedBy(r) {
			return false
		}
	}
	return true
}

// in reports whether the address, or one within it, is in r.
func (at *address) in(r netip.Prefix) bool {
	if r.Contains(at.addr) {
		return true
	}
	for _, inner := range at.within[:at.forms] {
		if r.Contains(inner) {
			return true
		}
	}
	return false
}

// worst is the special range to blame first: metadata before anything, then what is innermost.
func (at *address) worst() special {
	worst := at.ranges[0]
	for _, s := range at.ranges[1:at.count] {
		if s.class == classMetadata || worst.class == classTranslation {
			worst = s
		}
	}
	return worst
}
