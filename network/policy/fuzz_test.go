package policy_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"spore/network/policy"
)

// FuzzRule: any text is refused, or has a canonical form that means the same and holds nothing but plain ASCII.
func FuzzRule(f *testing.F) {
	for _, s := range []string{"example.org", "*.example.org:443", "tcp://[2001:db8::/32]:1-2,5", "db@10.0.0.0/8:5432", "bücher.example", "*", "*.*", "icmp://::1", "0x7f.1", "xn--a", "ｅ.org"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, allow bool) {
		s := policy.Source{Allow: []string{"*.*"}, Deny: []string{text}}
		if allow {
			s = policy.Source{Allow: []string{text}}
		}
		p, err := policy.Parse(s)
		if err != nil {
			return
		}
		rule := p.Rules()[len(p.Rules())-1]
		_, canonical, _ := strings.Cut(rule.String(), " ")
		if strings.ContainsFunc(canonical, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || len(canonical) > 1024 {
			t.Fatalf("%q has the canonical form %q", text, canonical)
		}
		if allow {
			s.Allow[0] = canonical
		} else {
			s.Deny[0] = canonical
		}
		again, err := policy.Parse(s)
		if err != nil || again.Rules()[len(p.Rules())-1].String() != rule.String() {
			t.Fatalf("%q: canonical form %q is read as %v, %v", text, canonical, again, err)
		}
	})
}

// metadata are addresses that nothing but an exact rule allows.
var metadata = []string{"169.254.169.254", "fd00:ec2::254", "100.100.100.200", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:169.254.169.254", "192.168.1.5", "93.184.216.1"}

// FuzzPolicy reads a file of rules and one denial more, and holds: what clouds and the host have at fixed addresses is allowed by a rule
// about that one address only; a denial more never allows more; an explanation says what happens.
func FuzzPolicy(f *testing.F) {
	f.Add("allow *", "1.2.3.4", "93.184.216.34", uint16(443), uint8(1), "example.org")
	f.Add("allow example.org\nallow *.example.org:22\ndeny www.example.org", "v6.example.org", "2606:2800::6", uint16(22), uint8(1), "www.example.org")
	f.Add("allow 169.254.0.0/16\nallow 64:ff9b::/96\nallow 0.0.0.0/0", "*:53", "64:ff9b::a9fe:a9fe", uint16(80), uint8(2), "a")
	f.Add("allow db.internal@10.0.0.0/8:5432", "udp://*", "10.1.2.3", uint16(5432), uint8(3), "db.internal")
	names := table(newClock(), told)
	f.Fuzz(func(t *testing.T, text, denial, address string, port uint16, protocol uint8, said string) {
		s, err := policy.ReadSource("rules", []byte(text))
		if err != nil || len(s.Allow)+len(s.Deny) > 50 {
			return
		}
		p, err := policy.Parse(s)
		if err != nil {
			return
		}
		p = p.In(around)
		exact := map[netip.Addr]bool{}
		for _, r := range p.Rules() {
			_, target, _ := strings.Cut(r.String(), " ")
			if _, rest, ok := strings.Cut(target, "://"); ok {
				target = rest
			}
			if _, within, ok := strings.Cut(target, "@"); ok {
				target = within
			}
			if a, err := netip.ParseAddrPort(target); err == nil {
				exact[a.Addr()] = true
			}
			target, _, _ = strings.Cut(strings.TrimPrefix(target, "["), "]")
			if i := strings.LastIndexByte(target, ':'); i >= 0 && strings.Count(target, ":") == 1 {
				target = target[:i]
			}
			if a, err := netip.ParseAddr(target); err == nil {
				exact[a] = true
			}
		}
		proto := policy.Protocol(protocol%3) + policy.TCP
		for _, m := range metadata {
			a := netip.MustParseAddr(m)
			flow := policy.Flow{Protocol: proto, Destination: netip.AddrPortFrom(a, port)}
			v := p.Connect(flow, names)
			if v.Action != policy.Deny && !exact[a.Unmap()] {
				t.Fatalf("%s is %s by %s", m, v.Action, v.Rule)
			}
		}
		a, err := netip.ParseAddr(address)
		if err != nil {
			return
		}
		flow := policy.Flow{Protocol: proto, Destination: netip.AddrPortFrom(a, port)}
		before := p.Connect(flow, names)
		if e, err := p.ExplainAddress(names, address); err == nil && e.Verdict.Action != p.Connect(policy.Flow{Protocol: policy.TCP, Destination: netip.AddrPortFrom(a, 443)}, names).Action {
			t.Fatalf("explained as %v", e)
		}
		s.Deny = append(s.Deny, denial)
		stricter, err := policy.Parse(s)
		if err != nil {
			return
		}
		stricter = stricter.In(around)
		if after := stricter.Connect(flow, names); after.Action > before.Action {
			t.Fatalf("%v: %+v, and with a denial more %+v", flow, before, after)
		}
		for spoken := policy.SpokenOther; spoken <= policy.SpokenHTTP; spoken++ {
			before, after := p.Named(flow, names, said, spoken), stricter.Named(flow, names, said, spoken)
			if after.Action > before.Action || before.Action == policy.Inspect {
				t.Fatalf("%v, %q by %s: %+v, and with a denial more %+v", flow, said, spoken, before, after)
			}
			if before.Action == policy.Allow && p.Connect(flow, names).Action == policy.Deny {
				t.Fatalf("%v, %q by %s: %+v after a connection that is denied", flow, said, spoken, before)
			}
		}
		if p.Lookup(said).Action < stricter.Lookup(said).Action || p.Answer(said, a).Action < stricter.Answer(said, a).Action || p.Alias(said).Action < stricter.Alias(said).Action {
			t.Fatalf("with a denial more %q may be resolved to %s", said, a)
		}
	})
}

// FuzzEvent: one line, plain ASCII, that can be read, whatever the guest said.
func FuzzEvent(f *testing.F) {
	f.Add("a\nb", "\x1b[0m", uint8(0), uint64(1))
	f.Fuzz(func(t *testing.T, name, reason string, protocol uint8, n uint64) {
		var b bytes.Buffer
		a := policy.NewAudit(&b, "0123456789ab", newClock().Now)
		a.Record(policy.Event{Name: name, Reason: reason, Protocol: policy.Protocol(protocol), Sent: n, Rule: reason})
		var back map[string]any
		line := b.Bytes()
		if err := json.Unmarshal(line, &back); err != nil || bytes.IndexByte(line, '\n') != len(line)-1 || len(line) > 8192 {
			t.Fatalf("%q, %v", line, err)
		}
		for _, c := range line[:len(line)-1] {
			if c < ' ' || c >= 0x7f {
				t.Fatalf("%q", line)
			}
		}
	})
}
