package policy

import (
	"net/netip"
	"strconv"
	"strings"
)

// kind is what a rule's target is.
type kind uint8

const (
	kindAll     kind = iota // "*": every public address; in a denial every address
	kindPrefix              // an address or a range
	kindName                // one name
	kindSuffix              // "*.example.org": what is below it
	kindAnyName             // "*.*": every name of two labels and more
)

// Rule is one rule, read and found to be enforceable. Rules come from Parse only.
type Rule struct {
	action   Action
	protocol Protocol
	kind     kind
	prefix   netip.Prefix // kindPrefix
	name     string       // kindName: the name; kindSuffix: the suffix without "*."
	within   netip.Prefix // NAME@CIDR: where else than in public the name may lead to; invalid for nowhere
	ports    []portRange  // none: every port, or the web's for an allowed name

	canonical string // what String returns, once the rule is complete
}

// portRange is ports from first to last, both included; never 0.
type portRange struct{ first, last uint16 }

// web is the ports of an allowed name that is written without any: those where the guest says the name.
var web = []portRange{{80, 80}, {443, 443}}

// byName reports whether the rule is about names.
func (r *Rule) byName() bool { return r.kind >= kindName }

// Allows reports whether the rule allows; otherwise it denies.
func (r *Rule) Allows() bool { return r.action == Allow }

// String is the rule in its canonical form, "allow tcp://[2001:db8::]/32:22".
func (r *Rule) String() string {
	if r.canonical != "" {
		return r.canonical
	}
	return r.action.String() + " " + r.text()
}

// text is the rule without its action: what stands after --allow or --deny.
func (r *Rule) text() string {
	var b strings.Builder
	if r.protocol != AnyProtocol {
		b.WriteString(r.protocol.String() + "://")
	}
	switch r.kind {
	case kindAll:
		b.WriteString("*")
	case kindPrefix:
		b.WriteString(prefixText(r.prefix))
	case kindName:
		b.WriteString(r.name)
	case kindSuffix:
		b.WriteString("*." + r.name)
	case kindAnyName:
		b.WriteString("*.*")
	}
	if r.within.IsValid() {
		b.WriteString("@" + prefixText(r.within))
	}
	for i, p := range r.ports {
		b.WriteByte(":,"[min(i, 1)])
		b.WriteString(strconv.Itoa(int(p.first)))
		if p.last != p.first {
			b.WriteString("-" + strconv.Itoa(int(p.last)))
		}
	}
	return b.String()
}

// prefixText is an address for a prefix of one, in brackets where a port could follow the colons of IPv6.
func prefixText(p netip.Prefix) string {
	s := p.String()
	if p.IsSingleIP() {
		s = p.Addr().String()
	}
	if p.Addr().Is6() {
		s = "[" + s + "]"
	}
	return s
}

// hasPort reports whether port is in ports; none are all.
func hasPort(ports []portRange, port uint16) bool {
	for _, p := range ports {
		if port >= p.first && port <= p.last {
			return true
		}
	}
	return len(ports) == 0
}

// covers reports whether the rule is about flows of this protocol to this port, whoever they go to. An allowed name that is written
// without a protocol is TCP; every other rule without one is every protocol.
func (r *Rule) covers(protocol Protocol, port uint16) bool {
	allowedName := r.byName() && r.Allows()
	want := r.protocol
	if want == AnyProtocol && allowedName {
		want = TCP
	}
	switch {
	case want != AnyProtocol && want != protocol:
		return false
	case protocol == ICMP:
		return len(r.ports) == 0
	case allowedName && len(r.ports) == 0:
		return hasPort(web, port)
	}
	return hasPort(r.ports, port)
}

// byAddress reports whether an allowed name may be reached at the port by the addresses that it was given, without being said: at
// ports that were written down, but for the web's two, where that takes an explicit "tcp://".
func (r *Rule) byAddress(protocol Protocol, port uint16) bool {
	return protocol != TCP || len(r.ports) > 0 && (r.protocol == TCP || !hasPort(web, port))
}

// about reports whether a rule by name is about name, which is canonical.
func (r *Rule) about(name string) bool {
	switch r.kind {
	case kindName:
		return r.name == name
	case kindSuffix:
		rest, ok := strings.CutSuffix(name, r.name)
		return ok && len(rest) > 1 && rest[len(rest)-1] == '.'
	case kindAnyName:
		return strings.IndexByte(name, '.') > 0
	}
	return false
}

// overlaps reports whether a denied name's protocols and ports have any in common with those of an allowed address, and the user
// did not name that address himself: one address, or a range that is not public.
func (r *Rule) overlaps(other *Rule) bool {
	if r.protocol != other.protocol && r.protocol != AnyProtocol && other.protocol != AnyProtocol {
		return false
	}
	if other.kind == kindPrefix && (other.prefix.IsSingleIP() || notPublic(other.prefix)) {
		return false
	}
	if len(r.ports) == 0 || len(other.ports) == 0 {
		return true
	}
	for _, a := range r.ports {
		for _, b := range other.ports {
			if a.first <= b.last && b.first <= a.last {
				return true
			}
		}
	}
	return false
}

// notPublic reports whether all of prefix is in one special range.
func notPublic(prefix netip.Prefix) bool {
	s := (&Policy{}).innermost(prefix.Addr())
	return s.class != classPublic && prefix.Bits() >= s.prefix.Bits()
}
