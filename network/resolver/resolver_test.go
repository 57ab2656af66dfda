package resolver_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"spore/network/policy"
	"spore/network/resolver"
	"spore/network/resolver/resolvertest"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a resolver with an upstream in memory.
type rig struct {
	*resolver.Server
	up     *resolvertest.Upstream
	names  *policy.Names
	clock  *clock
	policy *policy.Policy

	mu     sync.Mutex
	events []policy.Event
}

var records = []string{
	"example.org. 60 IN A 93.184.216.34", "example.org. 60 IN AAAA 2606:2800::34", "example.org. 60 IN MX 10 mail.example.org.", "example.org. 60 IN TXT \"v=spf1\"",
	"example.org. 60 IN HTTPS 1 . alpn=h3 ech=AEX+DQ==", "example.org. 60 IN NS ns.example.org.", "example.org. 60 IN CAA 0 issue \"ca.example\"",
	"_http._tcp.example.org. 60 IN SRV 0 0 80 example.org.",
	"www.example.org. 30 IN CNAME cdn.example.net.", "cdn.example.net. 20 IN A 104.16.0.1", "cdn.example.net. 20 IN A 104.16.0.2",
	"rebind.example.org. 60 IN A 10.0.0.1", "half.example.org. 60 IN A 10.0.0.1", "half.example.org. 60 IN A 93.184.216.35", "meta.example.org. 60 IN A 169.254.169.254",
	"inner.example.org. 60 IN CNAME secret.internal.", "secret.internal. 60 IN A 10.0.0.7", "six.example.org. 60 IN AAAA ::ffff:10.0.0.1", "nat.example.org. 60 IN AAAA 64:ff9b::a00:1",
	"tracked.example.org. 60 IN CNAME x.tracker.test.", "x.tracker.test. 60 IN A 93.184.216.40",
	"loop.example.org. 60 IN CNAME pool.example.org.", "pool.example.org. 60 IN CNAME loop.example.org.",
	"short.example.org. 0 IN A 93.184.216.36", "long.example.org. 604800 IN A 93.184.216.37", "empty.example.org. 60 IN TXT x",
	"34.216.184.93.in-addr.arpa. 60 IN PTR example.org.", "1.0.0.10.in-addr.arpa. 60 IN PTR printer.internal.", "8.8.8.8.in-addr.arpa. 60 IN PTR dns.google.",
	"db.internal. 60 IN A 10.1.2.3",
}

// zone is records, read once: to read them takes longer than an execution of a fuzz target.
var zone = sync.OnceValue(func() (all []dns.RR) {
	for _, text := range records {
		r, err := dns.NewRR(text)
		if err != nil {
			panic("bug: " + err.Error())
		}
		all = append(all, r)
	}
	return all
})

func newRig(t testing.TB, source policy.Source, change func(*resolver.Config)) *rig {
	t.Helper()
	p, err := policy.Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{up: &resolvertest.Upstream{}, clock: &clock{now: time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)}, policy: p}
	r.names = policy.NewNames(r.clock.Now)
	r.up.Zone.Put(zone()...)
	c := resolver.Config{
		Policy: p, Names: r.names, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}, Dial: r.up.Dial, Clock: r.clock.Now,
		Static: map[string][]netip.Addr{"gateway.spore": {netip.MustParseAddr("10.0.2.1"), netip.MustParseAddr("fd00::1")}, "box": {netip.MustParseAddr("10.0.2.2")}, "123456789012": {netip.MustParseAddr("10.0.2.2")}},
		Record: func(e policy.Event) { r.mu.Lock(); r.events = append(r.events, e); r.mu.Unlock() },
	}
	if change != nil {
		change(&c)
	}
	if r.Server, err = resolver.New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.up.Close)
	return r
}

func (r *rig) asked() int { return len(r.up.Asked()) }

// query is a query with EDNS; its parts can be changed.
func query(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), kind)
	m.SetEdns0(1232, false)
	return m
}

// send asks and returns what came back, which must be an answer to m.
func (r *rig) send(t testing.TB, m *dns.Msg, overTCP bool) *dns.Msg {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b := r.Answer(context.Background(), wire, overTCP)
	var a dns.Msg
	if err := a.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	if a.Id != m.Id || !a.Response || a.RecursionDesired != m.RecursionDesired || !a.RecursionAvailable || a.Authoritative || a.AuthenticatedData {
		t.Fatalf("header %+v", a.MsgHdr)
	}
	return &a
}

// text is an answer in short: its code, records and extended error.
func text(m *dns.Msg) string {
	var parts []string
	for _, r := range m.Answer {
		h := r.Header()
		parts = append(parts, fmt.Sprintf("%s/%d", strings.ReplaceAll(strings.TrimPrefix(r.String(), h.String()), "\t", " "), h.Ttl))
	}
	slices.Sort(parts)
	s := strings.TrimSpace(dns.RcodeToString[m.Rcode] + " " + strings.Join(parts, " "))
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				rule, _, _ := strings.Cut(e.ExtraText, ": ")
				s += fmt.Sprintf(" [%d %s]", e.InfoCode, rule)
			}
		}
	}
	return s
}

func TestAnswers(t *testing.T) {
	rules := policy.Source{Allow: []string{"example.org", "*.example.org", "db.internal@10.0.0.0/8:5432"}, Deny: []string{"secret.example.org", "*.tracker.test"}}
	for _, c := range []struct {
		source policy.Source
		cases  map[string]string
	}{
		{rules, map[string]string{
			"example.org A":                 "NOERROR 93.184.216.34/60",
			"EXAMPLE.org AAAA":              "NOERROR 2606:2800::34/60",
			"example.org MX":                "NOERROR 10 mail.example.org./60",
			"example.org TXT":               "NOERROR \"v=spf1\"/60",
			"example.org NS":                "NOERROR ns.example.org./60",
			"example.org CAA":               "NOERROR 0 issue \"ca.example\"/60",
			"example.org HTTPS":             "NOERROR",
			"example.org SVCB":              "NOERROR",
			"example.org ANY":               "NOTIMP",
			"example.org DNSKEY":            "NOTIMP",
			"example.org AXFR":              "NOTIMP",
			"example.org NULL":              "NOTIMP",
			"_http._tcp.example.org SRV":    "NOERROR 0 0 80 example.org./60",
			"www.example.org A":             "NOERROR 104.16.0.1/20 104.16.0.2/20",
			"www.example.org CNAME":         "NOERROR cdn.example.net./30",
			"www.example.org AAAA":          "NOERROR",
			"none.example.org A":            "NXDOMAIN",
			"empty.example.org A":           "NOERROR",
			"short.example.org A":           "NOERROR 93.184.216.36/5",
			"long.example.org A":            "NOERROR 93.184.216.37/300",
			"cdn.example.net A":             "NXDOMAIN [18 default:unlisted]",
			"evil.example.com A":            "NXDOMAIN [18 default:unlisted]",
			"evil.example.com HTTPS":        "NXDOMAIN [18 default:unlisted]",
			"c2VjcmV0.evil.example.com TXT": "NXDOMAIN [18 default:unlisted]",
			"org NS":                        "NXDOMAIN [18 default:unlisted]",
			". NS":                          "NXDOMAIN [18 default:name]",
			"secret.example.org A":          "NXDOMAIN [15 deny secret.example.org]",
			"a\\.example.org A":             "NXDOMAIN [18 default:name]",
			"a\\000.example.org A":          "NXDOMAIN [18 default:name]",
			"127.1 A":                       "NXDOMAIN [18 default:name]",
			"rebind.example.org A":          "NOERROR [17 default:private]",
			"half.example.org A":            "NOERROR 93.184.216.35/60 [17 default:private]",
			"meta.example.org A":            "NOERROR [17 default:metadata]",
			"inner.example.org A":           "NOERROR [17 default:private]",
			"six.example.org AAAA":          "NOERROR",
			"nat.example.org AAAA":          "NOERROR [17 default:private]",
			"tracked.example.org A":         "NXDOMAIN [17 deny *.tracker.test]",
			"loop.example.org A":            "NOERROR",
			"db.internal A":                 "NOERROR 10.1.2.3/60",
			"8.8.8.8.in-addr.arpa PTR":      "NXDOMAIN [18 default:unlisted]",
			"1.0.0.10.in-addr.arpa PTR":     "NXDOMAIN",
			"box A":                         "NOERROR 10.0.2.2/60",
			"123456789012 A":                "NOERROR 10.0.2.2/60",
			"BOX. A":                        "NOERROR 10.0.2.2/60",
			"box AAAA":                      "NOERROR",
			"box TXT":                       "NOERROR",
			"gateway.spore AAAA":            "NOERROR fd00::1/60",
			"2.2.0.10.in-addr.arpa PTR":     "NOERROR box./60",
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR": "NOERROR gateway.spore./60",
			"localhost A":               "NOERROR 127.0.0.1/60",
			"x.localhost AAAA":          "NOERROR ::1/60",
			"x.onion A":                 "NXDOMAIN",
			"use-application-dns.net A": "NXDOMAIN",
			"_dns.resolver.arpa SVCB":   "NXDOMAIN",
		}},
		{policy.Source{}, map[string]string{
			"evil.example.com A":               "NXDOMAIN",
			"cdn.example.net A":                "NOERROR 104.16.0.1/20 104.16.0.2/20",
			"example.org HTTPS":                "NOERROR",
			"rebind.example.org A":             "NOERROR [17 default:private]",
			"secret.internal A":                "NOERROR [17 default:private]",
			"8.8.8.8.in-addr.arpa PTR":         "NOERROR dns.google./60",
			"1.0.0.10.in-addr.arpa PTR":        "NXDOMAIN",
			"1.0.0.10.in-addr.arpa TXT":        "NXDOMAIN",
			"254.169.254.169.in-addr.arpa PTR": "NXDOMAIN",
			"x.8.8.8.in-addr.arpa PTR":         "NXDOMAIN",
		}},
	} {
		r := newRig(t, c.source, nil)
		for in, want := range c.cases {
			name, kind, _ := strings.Cut(in, " ")
			for _, overTCP := range []bool{false, true} {
				a := r.send(t, query(name, dns.StringToType[kind]), overTCP)
				if got := text(a); got != want {
					t.Errorf("%s: %s, want %s", in, got, want)
				}
				for _, rr := range a.Answer {
					if rr.Header().Name != dns.Fqdn(name) || len(a.Ns) != 0 || len(a.Extra) != 1 {
						t.Errorf("%s: %s", in, a)
					}
				}
			}
		}
	}
}

// TestPOLICYNothingLeaves: what is denied is asked of nobody, so that no bytes leave in a name.
func TestPOLICYNothingLeaves(t *testing.T) {
	r := newRig(t, policy.Source{Allow: []string{"example.org", "10.0.0.0/8", "93.184.0.0/16"}}, nil)
	for _, name := range []string{"secret.evil.example.com", "a.example.org", "example.org.evil.example.com", "box", "localhost", "1.0.0.10.in-addr.arpa", "1.2.3.4.in-addr.arpa", "org", ".", "evilexample.org",
		"ｅxample.org", "example\\.org", "x.onion", "resolver.arpa"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypePTR, dns.TypeNS, dns.TypeHTTPS, dns.TypeANY, dns.TypeNULL, 65280} {
			r.send(t, query(name, kind), false)
		}
	}
	for _, kind := range []uint16{dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY, dns.TypeNULL, dns.TypeDS, 65280} {
		r.send(t, query("example.org", kind), false)
	}
	if asked := r.up.Asked(); len(asked) != 0 {
		t.Errorf("the upstream was asked: %v", asked[0].Message)
	}
	if len(r.events) == 0 {
		t.Error("no denial was recorded")
	}
	for _, e := range r.events {
		if e.Action != policy.Deny || e.Protocol != policy.DNS || e.Rule == "" || e.Reason == "" {
			t.Errorf("%+v", e)
		}
	}
}

// TestLearns: the policy knows afterwards what the guest was told, under the name asked for, and nothing else.
func TestLearns(t *testing.T) {
	r := newRig(t, policy.Source{Allow: []string{"*.example.org"}}, nil)
	for _, name := range []string{"www.example.org", "rebind.example.org", "half.example.org", "meta.example.org", "box", "tracked.example.org"} {
		r.send(t, query(name, dns.TypeA), false)
	}
	for addr, want := range map[string]string{"104.16.0.1": "www.example.org", "104.16.0.2": "www.example.org", "10.0.0.1": "", "93.184.216.35": "half.example.org", "169.254.169.254": "", "10.0.2.2": "",
		"93.184.216.40": "tracked.example.org"} {
		if got := strings.Join(r.names.Of(netip.MustParseAddr(addr)), " "); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	f := policy.Flow{Protocol: policy.TCP, Destination: netip.MustParseAddrPort("104.16.0.1:443")}
	if v := r.policy.Connect(f, r.names); v.Action != policy.Inspect {
		t.Errorf("%+v", v)
	}
	if v := r.policy.Named(f, r.names, "cdn.example.net", policy.SpokenTLS); v.Action != policy.Deny {
		t.Errorf("the alias is a name now: %+v", v)
	}
	if got := text(r.send(t, query("1.0.16.104.in-addr.arpa", dns.TypePTR), false)); got != "NOERROR www.example.org./60" {
		t.Errorf("reverse: %s", got)
	}
}

// TestCache: an answer is kept as long as it may be, its time runs down, and the policy learns anew each time.
func TestCache(t *testing.T) {
	r := newRig(t, policy.Source{Allow: []string{"example.org", "*.example.org"}}, nil)
	ask := func(name string) string { return text(r.send(t, query(name, dns.TypeA), false)) }
	ask("example.org")
	r.clock.add(20*time.Second + 1)
	if got := ask("EXAMPLE.ORG"); got != "NOERROR 93.184.216.34/40" || r.asked() != 1 {
		t.Errorf("%s after %d questions", got, r.asked())
	}
	r.names.Forget()
	r.clock.add(39 * time.Second)
	if got := ask("example.org"); got != "NOERROR 93.184.216.34/1" || len(r.names.Addresses("example.org")) != 1 {
		t.Errorf("%s", got)
	}
	r.up.Zone.Set("example.org", "example.org. 60 IN A 93.184.216.99")
	r.clock.add(time.Second)
	if got := ask("example.org"); got != "NOERROR 93.184.216.99/60" || r.asked() != 2 {
		t.Errorf("%s after %d questions", got, r.asked())
	}
	// What is not there is kept too, and what was removed is recorded each time.
	ask("none.example.org")
	ask("none.example.org")
	ask("rebind.example.org")
	ask("rebind.example.org")
	if r.asked() != 4 || len(r.events) != 2 {
		t.Errorf("%d questions, %d events", r.asked(), len(r.events))
	}
	r.Forget()
	ask("example.org")
	if r.asked() != 5 {
		t.Errorf("%d questions after Forget", r.asked())
	}
	for i := range 1500 {
		r.clock.add(5 * time.Millisecond) // within the rate
		ask(fmt.Sprintf("n%d.example.org", i))
	}
	before := r.asked()
	ask("n1499.example.org")
	ask("n0.example.org")
	if r.asked() != before+1 {
		t.Errorf("%d questions, %d before", r.asked(), before)
	}
}

// TestRefusesForms: what is no plain query is answered by a code, or by silence if an answer could begin a quarrel.
func TestRefusesForms(t *testing.T) {
	r := newRig(t, policy.Source{}, nil)
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		want   int // -1 is silence
	}{
		"response":  {func(m *dns.Msg) { m.Response = true }, -1},
		"notify":    {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"update":    {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"none":      {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"answer": {func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeA, Class: 1}}}
		}, dns.RcodeFormatError},
		"signature": {func(m *dns.Msg) { m.Extra = nil; m.SetTsig("k.", dns.HmacSHA256, 300, 0) }, dns.RcodeFormatError},
		"extras": {func(m *dns.Msg) {
			m.Extra = append(m.Extra, &dns.A{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeA, Class: 1}})
		}, dns.RcodeFormatError},
		"chaos":     {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeNotImplemented},
		"any class": {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }, dns.RcodeNotImplemented},
		"version":   {func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"client net": {func(m *dns.Msg) {
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})
		}, dns.RcodeSuccess},
	} {
		m := query("example.org", dns.TypeA)
		c.change(m)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b := r.Answer(context.Background(), wire, false)
		if c.want < 0 {
			if b != nil {
				t.Errorf("%s: answered", name)
			}
			continue
		}
		var a dns.Msg
		if err := a.Unpack(b); err != nil || a.Rcode != c.want || a.Id != m.Id || !a.Response || a.Opcode != m.Opcode {
			t.Errorf("%s: %v, %s", name, err, &a)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 11), make([]byte, 5000)} {
		if a := r.Answer(context.Background(), b, true); a != nil {
			t.Errorf("%d bytes: answered %x", len(b), a)
		}
	}
	for _, a := range r.up.Asked() {
		if opt := a.Message.IsEdns0(); opt != nil && len(opt.Option) > 0 {
			t.Errorf("the guest's options went on: %s", opt)
		}
	}
	if r.Queries() == 0 {
		t.Error("no query was counted")
	}
}

// TestSizes: no answer is larger than the guest takes.
func TestSizes(t *testing.T) {
	r := newRig(t, policy.Source{}, nil)
	for i := range 200 {
		r.up.Zone.Add(fmt.Sprintf("many.example.org. 60 IN AAAA 2606:2800::%x", i+1), fmt.Sprintf("texts.example.org. 60 IN TXT \"%0200d\"", i))
	}
	long := strings.Repeat(strings.Repeat("a", 61)+".", 4)
	for _, c := range []struct {
		name    string
		kind    uint16
		edns    int // -1: none
		tcp     bool
		max     int
		cut     bool
		answers int
	}{
		{"many.example.org", dns.TypeAAAA, -1, false, 512, true, -1},
		{"many.example.org", dns.TypeAAAA, 0, false, 512, true, -1},
		{"many.example.org", dns.TypeAAAA, 1000, false, 1000, true, -1},
		{"many.example.org", dns.TypeAAAA, 65535, false, 1232, true, -1},
		{"many.example.org", dns.TypeAAAA, -1, true, 65535, false, 48},
		{"texts.example.org", dns.TypeTXT, 4096, false, 1232, true, -1},
		{"texts.example.org", dns.TypeTXT, 4096, true, 65535, false, 64},
		{"example.org", dns.TypeA, -1, false, 512, false, 1},
		{long + "onion", dns.TypeA, 512, false, 512, false, 0},
		{long[:240] + ".1", dns.TypeA, 512, false, 512, false, 0},
	} {
		m := query(c.name, c.kind)
		m.Extra = nil
		if c.edns >= 0 {
			m.SetEdns0(uint16(c.edns), false)
		}
		wire, _ := m.Pack()
		b := r.Answer(context.Background(), wire, c.tcp)
		var a dns.Msg
		if err := a.Unpack(b); err != nil || len(b) > c.max || a.Truncated != c.cut || c.answers >= 0 && len(a.Answer) != c.answers || (a.IsEdns0() != nil) != (c.edns >= 0) {
			t.Errorf("%s with EDNS %d, TCP %t: %d bytes, cut %t, %d answers, %v", c.name, c.edns, c.tcp, len(b), a.Truncated, len(a.Answer), err)
		}
		if a.Rcode == dns.RcodeServerFailure {
			t.Errorf("%s: %s", c.name, &a)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := resolver.New(resolver.Config{}); err == nil {
		t.Error("made without a policy")
	}
	if _, err := resolver.New(resolver.Config{Policy: &policy.Policy{}, Names: policy.NewNames(time.Now), Static: map[string][]netip.Addr{"a..b": nil}}); err != nil {
		t.Errorf("a machine's name that is none is not just left out: %v", err)
	}
}
