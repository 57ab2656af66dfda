package resolver

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"spore/network/policy"
)

// reduce takes from an upstream's answer what answers the question and may be told: the records of the type asked for at the end of
// the chain of aliases that begins with the name. Whatever else is there is left out.
func (s *Server) reduce(q question, m *dns.Msg) outcome {
	owner, ttl, o := s.follow(q, m)
	if o.verdict.Rule != "" {
		return o
	}
	o.rcode = m.Rcode
	for _, r := range m.Answer {
		h := r.Header()
		if h.Rrtype != q.kind || h.Class != dns.ClassINET || !sameName(h.Name, owner) {
			continue
		}
		switch addr := addressOf(r); {
		case q.kind != dns.TypeA && q.kind != dns.TypeAAAA:
			if len(o.records) == maxRecords {
				continue
			}
			o.records = append(o.records, r)
		case !addr.IsValid() || len(o.addrs) == maxAddresses:
			continue
		default:
			if v := s.config.Policy.Answer(q.name, addr); v.Action != policy.Allow {
				o.verdict, o.extended = v, dns.ExtendedErrorCodeFiltered
				continue
			}
			o.addrs = append(o.addrs, addr)
		}
		ttl = min(ttl, h.Ttl)
	}
	if len(o.addrs)+len(o.records) > 0 {
		o.rcode = dns.RcodeSuccess
		o.ttl = max(ttl, minTTL)
		return o
	}
	o.ttl = negativeTTL
	return o
}

// follow goes along the aliases in an answer. A loop, or a chain that is too long, leads to where it was given up, where nothing is. The
// outcome has a verdict if an alias is denied.
func (s *Server) follow(q question, m *dns.Msg) (owner string, ttl uint32, o outcome) {
	owner, ttl = q.name, maxTTL
	if q.kind == dns.TypeCNAME {
		return owner, ttl, o
	}
	for range maxAliases {
		next := ""
		for _, r := range m.Answer {
			if c, ok := r.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET && sameName(c.Hdr.Name, owner) {
				next, ttl = c.Target, min(ttl, c.Hdr.Ttl)
				break
			}
		}
		if next == "" {
			break
		}
		if v := s.config.Policy.Alias(next); v.Action != policy.Allow && q.kind != dns.TypePTR {
			return owner, ttl, outcome{rcode: dns.RcodeNameError, ttl: negativeTTL, verdict: v, extended: dns.ExtendedErrorCodeFiltered}
		}
		owner = next
	}
	return owner, ttl, o
}

// sameName compares names in presentation form, one of them canonical perhaps.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// addressOf is the address in an A or AAAA record. An AAAA record with an IPv4 address is no answer: it would go where A records are
// judged for.
func addressOf(r dns.RR) netip.Addr {
	switch r := r.(type) {
	case *dns.A:
		a, _ := netip.AddrFromSlice(r.A.To4())
		return a
	case *dns.AAAA:
		if a, ok := netip.AddrFromSlice(r.AAAA.To16()); ok && !a.Is4In6() {
			return a
		}
	}
	return netip.Addr{}
}
