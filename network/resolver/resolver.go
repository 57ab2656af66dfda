// Package resolver is the guest's name server: it asks the host's for what the policy allows, gives the guest what the policy
// allows of the answers, and notes for the policy which addresses it gave for which name.
//
// What the guest sends is judged before anybody else sees it: one question, of class IN, of a type that cannot be used to get
// round the policy, for a name that a rule allows. What an upstream sends is judged as a stranger's: it must match the question, and
// only addresses and records that were asked for are taken from it.
package resolver

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"spore/network/policy"
)

// The bounds of a Server.
const (
	maxQuery     = 4096 // bytes of the guest's; one question and an OPT record need 300
	maxPending   = 64   // questions to upstreams at once
	maxRate      = 200  // questions to upstreams a second, in the long run
	maxBurst     = 500  // and at once
	patience     = 8 * time.Second
	attemptTime  = 2 * time.Second // of one exchange with one upstream
	maxAttempts  = 4
	payload      = 1232 // bytes of a UDP answer that every path carries whole (DNS flag day 2020)
	minTTL       = 5    // s
	maxTTL       = 300  // s: as long as policy.Names keeps
	negativeTTL  = 30   // s
	staticTTL    = 60   // s
	maxAddresses = 48   // of one answer; policy.Names keeps 64 of a name
	maxRecords   = 64   // of one answer of another type
	maxAliases   = 8    // CNAME records on the way
)

// Config is what a Server is made of.
type Config struct {
	// Policy is needed.
	Policy *policy.Policy
	// Names learns every address that the guest is told. It is needed.
	Names *policy.Names
	// Upstreams are asked in turn. None: every question but those that Static answers fails.
	Upstreams []netip.AddrPort
	// Dial makes connections to upstreams; network is "udp" or "tcp". Nil is a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Static is names that are answered here, under no rule: the sandbox's own and the gateway's. Their addresses are not learnt.
	Static map[string][]netip.Addr
	// Record is told of every question that was denied or partly so; nil: nobody.
	Record func(policy.Event)
	// Clock is time.Now when nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Server answers queries. It is safe for use by several goroutines.
type Server struct {
	config  Config
	static  map[string][]netip.Addr // by name in lower case
	reverse map[netip.Addr]string
	cache   cache
	pending chan struct{} // a token for each question to an upstream
	budget  budget
	first   atomic.Uint32 // index of the upstream that answered last
	queries atomic.Uint64
}

// New returns a Server. An error means that something needed is missing.
func New(c Config) (*Server, error) {
	if c.Policy == nil || c.Names == nil {
		return nil, errors.New("make resolver: it needs a policy and a table of names")
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	s := &Server{config: c, static: map[string][]netip.Addr{}, reverse: map[netip.Addr]string{}, pending: make(chan struct{}, maxPending)}
	s.budget.at, s.budget.tokens = c.Clock(), maxBurst
	for _, name := range slices.Sorted(maps.Keys(c.Static)) {
		// A machine's own name need not be one of a host on the Internet: it may be a number. One that no question can be about is of no use.
		lower := strings.ToLower(strings.TrimSuffix(name, "."))
		if _, ok := dns.IsDomainName(lower); !ok || lower == "" {
			c.Log.Debug("a name cannot be looked up", "name", name)
			continue
		}
		s.static[lower] = append(s.static[lower], c.Static[name]...)
		for _, a := range c.Static[name] {
			s.reverse[a.Unmap()] = lower
		}
	}
	return s, nil
}

// Queries is how many queries were answered so far.
func (s *Server) Queries() uint64 { return s.queries.Load() }

// Forget drops every answer that is kept. What policy.Names has learnt is its own affair.
func (s *Server) Forget() { s.cache.forget() }

// Answer returns the response to one query in wire format, without TCP's length. Nil means that there is none, for what came was no
// query at all. It returns when ctx ends, and after 10 s at the latest.
func (s *Server) Answer(ctx context.Context, query []byte, overTCP bool) []byte {
	q, reply := readQuery(query)
	if q == nil {
		return reply
	}
	s.queries.Add(1)
	limit := dns.MaxMsgSize
	if !overTCP {
		limit = q.udpSize
	}
	return q.pack(s.answer(ctx, q), limit)
}

// answer goes through everything that may answer q, the nearest first.
func (s *Server) answer(ctx context.Context, q *query) outcome {
	if q.refused != 0 {
		return outcome{rcode: q.refused}
	}
	if o, ok := s.local(q); ok {
		return o
	}
	if v := s.config.Policy.Lookup(q.name); v.Action != policy.Allow {
		return s.denied(q, v)
	}
	switch q.kind {
	case dns.TypeHTTPS, dns.TypeSVCB:
		// These records carry keys for an encrypted ClientHello, and protocols in which names cannot be looked at.
		return outcome{}
	case dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCNAME, dns.TypeNS, dns.TypeSOA, dns.TypeCAA, dns.TypePTR, dns.TypeNAPTR:
		return s.resolve(ctx, q)
	}
	return outcome{rcode: dns.RcodeNotImplemented}
}

// denied is the outcome of a question that the policy does not allow, and tells whoever keeps the records.
//
// It is NXDOMAIN, since that is what every program takes for an answer at once: musl 1.2.3 goes on waiting for its whole 5 s after
// REFUSED and after SERVFAIL, and both it and glibc then call the failure temporary. RFC 8914's extended error says what it really is.
func (s *Server) denied(q *query, v policy.Verdict) outcome {
	s.record(q, v)
	o := outcome{rcode: dns.RcodeNameError, verdict: v, extended: dns.ExtendedErrorCodeBlocked}
	if v.Rule == "default:unlisted" || v.Rule == "default:name" {
		o.extended = dns.ExtendedErrorCodeProhibited
	}
	return o
}

func (s *Server) record(q *query, v policy.Verdict) {
	if s.config.Record == nil {
		return
	}
	s.config.Record(policy.Event{Action: policy.Deny, Protocol: policy.DNS, Name: q.name, Rule: v.Rule, Reason: v.Reason})
}

// resolve answers from the cache or asks an upstream, and judges the answer.
func (s *Server) resolve(ctx context.Context, q *query) outcome {
	now := s.config.Clock()
	key := question{q.name, q.kind}
	o, age, ok := s.cache.get(key, now)
	if !ok {
		response, err := s.ask(ctx, key)
		if err != nil {
			s.config.Log.Debug("no upstream answered", "err", err)
			return outcome{rcode: dns.RcodeServerFailure, extended: dns.ExtendedErrorCodeNetworkError}
		}
		o = s.reduce(key, response)
		s.cache.put(key, o, s.config.Clock())
	}
	o.age = age
	if o.verdict.Rule != "" {
		s.record(q, o.verdict)
	}
	for _, a := range o.addrs {
		s.config.Names.Learn(q.name, a, time.Duration(o.ttl-min(age, o.ttl))*time.Second)
	}
	return o
}
