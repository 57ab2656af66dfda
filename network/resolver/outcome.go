package resolver

import (
	"net/netip"

	"github.com/miekg/dns"

	"spore/network/policy"
)

// outcome is what there is to answer. Its parts are not changed once it is made: it may be in the cache. The zero value is
// NOERROR without records.
type outcome struct {
	rcode    int
	addrs    []netip.Addr // for A and AAAA
	records  []dns.RR     // for other types; their headers are made when they are written
	ttl      uint32       // s
	age      uint32       // s that it has been in the cache
	verdict  policy.Verdict
	extended uint16 // extended error for the verdict, RFC 8914; 0 for none, "Other" is not used
}

// addresses is an outcome with those of addrs that are of the type asked for.
func addresses(kind uint16, addrs []netip.Addr, ttl uint32) outcome {
	o := outcome{ttl: ttl}
	for _, a := range addrs {
		if a = a.Unmap(); kind == dns.TypeA && a.Is4() || kind == dns.TypeAAAA && a.Is6() {
			o.addrs = append(o.addrs, a)
		}
	}
	return o
}

// header is the header of a record whose name and time to live are filled in later.
func header(kind uint16) dns.RR_Header {
	return dns.RR_Header{Rrtype: kind, Class: dns.ClassINET}
}

// maxExtended bounds the text of an extended error, which has to fit a small answer beside the question (its name with a length and an
// end, type and class), the OPT record and the option's own head.
const (
	maxExtended      = 300
	extendedOverhead = 2 + 4 + 11 + 6
)

// pack writes the answer to q. Aliases on the way are left out, so that a resolver in the guest does not go and ask for them by
// themselves, which the rules need not allow: every record is the name's that was asked for, in the case in which it was.
func (q *query) pack(o outcome, limit int) []byte {
	m := dns.Msg{Compress: true, Question: []dns.Question{q.question}}
	m.MsgHdr = dns.MsgHdr{Id: q.header.Id, Response: true, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
		CheckingDisabled: q.header.CheckingDisabled, Rcode: o.rcode}
	head := dns.RR_Header{Name: q.question.Name, Rrtype: q.kind, Class: dns.ClassINET, Ttl: max(o.ttl-min(o.age, o.ttl), 1)}
	for _, a := range o.addrs {
		if a.Is4() {
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	for _, r := range o.records {
		r = dns.Copy(r)
		*r.Header() = head
		m.Answer = append(m.Answer, r)
	}
	if q.edns {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(payload)
		if o.extended != 0 {
			text := o.verdict.Rule
			if o.verdict.Reason != "" {
				text += ": " + o.verdict.Reason
			}
			room := max(0, limit-headerSize-len(q.question.Name)-extendedOverhead)
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: o.extended, ExtraText: text[:min(len(text), maxExtended, room)]})
		}
		m.Extra = append(m.Extra, opt)
	}
	m.Truncate(limit)
	b, err := m.Pack()
	if err != nil || len(b) > limit {
		// A record that can be read and not written, or a question that fills the answer alone.
		f := dns.Msg{MsgHdr: m.MsgHdr, Question: m.Question}
		f.Rcode = dns.RcodeServerFailure
		if b, err = f.Pack(); err != nil {
			return nil
		}
	}
	return b
}
