package resolver

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"spore/network/policy"
)

// headerSize is the size of a message's header, RFC 1035 §4.1.1.
const headerSize = 12

// question is what is asked of upstreams and kept in the cache.
type question struct {
	name string // canonical; what is no host name never gets here
	kind uint16
}

// query is a query of the guest's, judged by its form.
type query struct {
	header   dns.MsgHdr
	question dns.Question // as it came, its case too
	name     string       // in lower case without the last dot; need not be a host name
	kind     uint16
	udpSize  int  // of the largest answer that the guest takes by UDP
	edns     bool // it has an OPT record, and so may the answer
	refused  int  // RCODE to answer with, 0 to go on
}

// readQuery reads a query. Nil with a reply means that the reply is all that is to be said, and nil with nil that nothing is: what is
// no query is not answered, or two servers could go on for ever.
func readQuery(b []byte) (q *query, reply []byte) {
	if len(b) < headerSize || len(b) > maxQuery {
		return nil, nil
	}
	if flags := binary.BigEndian.Uint16(b[2:]); flags>>15 == 1 {
		return nil, nil
	} else if opcode := flags >> 11 & 0xf; opcode != dns.OpcodeQuery {
		return nil, bare(b, dns.RcodeNotImplemented)
	}
	// One question and nothing else but an OPT record: whatever else may be there costs time to read and means nothing.
	if count := func(i int) uint16 { return binary.BigEndian.Uint16(b[4+2*i:]) }; count(0) != 1 || count(1) != 0 || count(2) != 0 || count(3) > 1 {
		return nil, bare(b, dns.RcodeFormatError)
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil || len(m.Question) != 1 {
		return nil, bare(b, dns.RcodeFormatError)
	}
	q = &query{header: m.MsgHdr, question: m.Question[0], kind: m.Question[0].Qtype, udpSize: dns.MinMsgSize}
	q.name = strings.ToLower(strings.TrimSuffix(q.question.Name, "."))
	if len(m.Extra) > 0 {
		opt := m.IsEdns0()
		if opt == nil {
			return nil, bare(b, dns.RcodeFormatError) // a signature, for which there is no key
		}
		q.edns = true
		q.udpSize = min(max(int(opt.UDPSize()), dns.MinMsgSize), payload)
		if opt.Version() != 0 {
			q.refused = dns.RcodeBadVers
		}
	}
	if q.question.Qclass != dns.ClassINET {
		q.refused = dns.RcodeNotImplemented
	}
	return q, nil
}

// bare is an answer that consists of a header.
func bare(query []byte, rcode int) []byte {
	b := make([]byte, headerSize)
	copy(b, query[:2])
	// QR, the query's opcode and RD, RA.
	flags := 1<<15 | binary.BigEndian.Uint16(query[2:])&(0xf<<11|1<<8) | 1<<7 | uint16(rcode)
	binary.BigEndian.PutUint16(b[2:], flags)
	return b
}

// local answers what needs no upstream and no rule: the static names, the guest's own localhost, names that programs probe for to
// find a way round this resolver, and what the addresses of those and of private networks are called.
func (s *Server) local(q *query) (outcome, bool) {
	if addrs, ok := s.static[q.name]; ok {
		return addresses(q.kind, addrs, staticTTL), true
	}
	last := q.name[strings.LastIndexByte(q.name, '.')+1:]
	switch {
	case last == "localhost": // RFC 6761 §6.3
		return addresses(q.kind, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, staticTTL), true
	case last == "onion", last == "invalid", // RFC 7686, RFC 6761
		q.name == "use-application-dns.net",                                    // Firefox: whether to use a resolver of its own
		q.name == "resolver.arpa", strings.HasSuffix(q.name, ".resolver.arpa"), // RFC 9462: what else this resolver speaks
		q.name == "mask.icloud.com", q.name == "mask-h2.icloud.com": // Apple's relay
		return outcome{rcode: dns.RcodeNameError}, true
	}
	addr, isReverse := reverseAddr(q.name)
	if !isReverse {
		return outcome{}, false
	}
	name := s.reverse[addr]
	if known := s.config.Names.Of(addr); name == "" && len(known) > 0 {
		name = known[0]
	}
	switch {
	case name != "" && q.kind == dns.TypePTR:
		return outcome{ttl: staticTTL, records: []dns.RR{&dns.PTR{Hdr: header(dns.TypePTR), Ptr: dns.Fqdn(name)}}}, true
	case s.config.Policy.Answer("reverse", addr).Action != policy.Allow:
		// What the machines of a private network are called is theirs (RFC 6303).
		return outcome{rcode: dns.RcodeNameError}, true
	}
	return outcome{}, false
}

// reverseAddr is the address that a name under in-addr.arpa or ip6.arpa is about (RFC 1035 §3.5, RFC 3596 §2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		digit := strings.IndexByte("0123456789abcdef", rest[62-2*i])
		if digit < 0 || i < 31 && rest[61-2*i] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | byte(digit)
	}
	return netip.AddrFrom16(b), true
}
