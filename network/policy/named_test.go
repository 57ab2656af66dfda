package policy_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"spore/network/policy"
)

// TestNamed holds what the guest may say where. The names' addresses are those of told.
func TestNamed(t *testing.T) {
	spoken := map[string]policy.Spoken{"tls": policy.SpokenTLS, "ech": policy.SpokenTLSEncrypted, "http": policy.SpokenHTTP, "other": policy.SpokenOther}
	for text, cases := range map[string]map[string]string{
		"": {"93.184.216.34:443 tls evil.example.com": "allow default:public", "10.0.0.1:443 tls example.org": "deny default:private"},
		"allow example.org": {
			"93.184.216.34:443 tls example.org":       "allow allow example.org",
			"93.184.216.34:443 tls EXAMPLE.org.":      "allow allow example.org",
			"93.184.216.34:80 http example.org":       "allow allow example.org",
			"93.184.216.34:443 http example.org":      "allow allow example.org",
			"93.184.216.34:443 tls www.example.org":   "deny default:unlisted", // shares the address
			"93.184.216.34:80 http www.example.org":   "deny default:unlisted",
			"93.184.216.34:443 tls evil.example.com":  "deny default:unlisted",
			"93.184.216.34:443 tls -":                 "deny default:name",
			"93.184.216.34:80 http -":                 "deny default:name",
			"93.184.216.34:443 other -":               "deny default:name",
			"93.184.216.34:443 ech example.org":       "deny default:name",
			"93.184.216.34:80 http 93.184.216.34":     "deny default:name",
			"93.184.216.34:80 http [2606:2800::34]":   "deny default:name",
			"93.184.216.34:80 http example.org:80":    "deny default:name", // the port is the proxy's to take off
			"93.184.216.34:80 http example.org\x00.a": "deny default:name",
			"93.184.216.34:80 http example.org..":     "deny default:name",
			"93.184.216.34:443 tls еxample.org":       "deny default:name", // Cyrillic
			"93.184.216.34:443 tls xample.org":        "deny default:unlisted",
			"104.16.0.1:443 tls example.org":          "deny default:name", // not its address
			"93.184.216.35:443 tls example.org":       "deny default:name",
			"169.254.169.254:80 http example.org":     "deny default:name",
			"10.1.2.3:80 http example.org":            "deny default:name",
			"93.184.216.34:8443 tls example.org":      "deny default:unlisted",
		},
		"allow *.example.org": {
			"93.184.216.34:443 tls www.example.org":    "allow allow *.example.org",
			"93.184.216.34:443 tls example.org":        "deny default:unlisted",
			"93.184.216.34:443 tls a.www.example.org":  "deny default:name", // allowed, but never asked for
			"93.184.216.34:443 tls wwwexample.org":     "deny default:unlisted",
			"93.184.216.34:443 tls x.badexample.org":   "deny default:unlisted",
			"10.1.2.3:443 tls rebind.example.org":      "deny default:private",
			"169.254.169.254:80 http meta.example.org": "deny default:metadata",
			"192.168.1.5:80 http host.example.org":     "deny default:host",
		},
		"allow cdn.example.net": {
			"104.16.0.1:443 tls cdn.example.net":    "allow allow cdn.example.net",
			"104.16.0.1:443 tls victim.example.com": "deny default:unlisted",
			"104.16.0.1:443 ech cdn.example.net":    "deny default:name",
		},
		"allow example.org:22,8443; allow tcp://www.example.org:443": {
			"93.184.216.34:22 other -":                "allow allow example.org:22,8443",
			"93.184.216.34:22 tls -":                  "allow allow example.org:22,8443",
			"93.184.216.34:22 tls example.org":        "allow allow example.org:22,8443",
			"93.184.216.34:22 tls evil.example.com":   "deny default:unlisted",
			"93.184.216.34:8443 http www.example.org": "deny default:unlisted",
			"93.184.216.34:8443 ech example.org":      "deny default:name",
			"93.184.216.34:443 other -":               "allow allow tcp://www.example.org:443",
			"93.184.216.34:443 tls www.example.org":   "allow allow tcp://www.example.org:443",
			"93.184.216.34:443 tls example.org":       "deny default:unlisted",
			"93.184.216.34:80 other -":                "deny default:unlisted",
		},
		"allow example.org:443": {
			"93.184.216.34:443 tls example.org": "allow allow example.org:443",
			"93.184.216.34:443 other -":         "deny default:name", // that would take tcp://
			"93.184.216.34:80 http example.org": "deny default:unlisted",
		},
		"allow db.internal@10.0.0.0/8:5432,8443; allow *.example.org": {
			"10.1.2.3:5432 other -":               "allow allow db.internal@10.0.0.0/8:5432,8443",
			"10.1.2.3:8443 tls db.internal":       "allow allow db.internal@10.0.0.0/8:5432,8443",
			"10.1.2.3:443 tls db.internal":        "deny default:unlisted",
			"10.1.2.9:5432 other -":               "deny default:private",
			"10.1.2.3:443 tls rebind.example.org": "deny default:private",
		},
		"allow *.example.org; allow example.org:22; deny www.example.org; deny v6.example.org:443": {
			"93.184.216.34:443 tls www.example.org": "deny deny www.example.org",
			"93.184.216.34:22 tls example.org":      "allow allow example.org:22",
			"93.184.216.34:22 other -":              "deny deny www.example.org", // any of the address's names may be meant
			"[2606:2800::6]:443 tls v6.example.org": "deny deny v6.example.org:443",
			"[2606:2800::6]:80 http v6.example.org": "allow allow *.example.org",
		},
		"allow *.*; deny victim.example.com; allow 10.1.2.3; allow 8.8.8.8": {
			"104.16.0.1:443 tls cdn.example.net":      "allow allow *.*",
			"104.16.0.1:443 tls victim.example.com":   "deny deny victim.example.com",
			"104.16.0.1:443 tls a.victim.example.com": "deny default:name",
			"104.16.0.1:443 other -":                  "deny deny victim.example.com",
			"93.184.216.34:443 other -":               "deny default:name",
			"10.1.2.3:443 tls db.internal":            "allow allow 10.1.2.3",
			"10.1.2.3:443 other -":                    "allow allow 10.1.2.3",
			"8.8.8.8:443 tls victim.example.com":      "deny deny victim.example.com",
			"8.8.8.8:443 ech whatever.example.com":    "deny default:name",
		},
		"allow 10.1.2.3; deny 10.1.2.3:22": {"10.1.2.3:22 other -": "deny deny 10.1.2.3:22", "10.1.2.3:443 tls x.org": "allow allow 10.1.2.3"},
	} {
		t.Run(text, func(t *testing.T) {
			p, names := parse(t, text), table(newClock(), told)
			for in, want := range cases {
				words := strings.SplitN(in, " ", 3)
				v := p.Named(flow(t, words[0]), names, strings.TrimPrefix(words[2], "-"), spoken[words[1]])
				if got := v.Action.String() + " " + v.Rule; got != want {
					t.Errorf("%s: %s (%s), want %s", in, got, v.Reason, want)
				}
				if v.Action == policy.Deny && v.Reason == "" {
					t.Errorf("%s: denied without a reason", in)
				}
			}
		})
	}
}

func TestLookup(t *testing.T) {
	for text, cases := range map[string]map[string]string{
		"":                          {"anything.example.com": "allow default:public", "127.1": "deny default:name", "a..b": "deny default:name", `a\.b`: "deny default:name"},
		"allow *":                   {"anything.example.com": "allow allow *"},
		"allow udp://*:123":         {"anything.example.com": "allow allow udp://*:123"},
		"allow 1.2.3.0/24":          {"anything.example.com": "deny default:unlisted"},
		"allow 0.0.0.0/0":           {"anything.example.com": "allow allow 0.0.0.0/0"},
		"allow *.*; deny evil.test": {"evil.test": "deny deny evil.test", "a.evil.test": "allow allow *.*", "test": "deny default:unlisted", "EVIL.test.": "deny deny evil.test"},
		"allow example.org; allow *.example.net:22; deny x.example.net; deny y.example.net:22": {
			"example.org": "allow allow example.org", "Example.ORG.": "allow allow example.org", "a.example.org": "deny default:unlisted", "org": "deny default:unlisted",
			"a.example.net": "allow allow *.example.net:22", "example.net": "deny default:unlisted", "x.example.net": "deny deny x.example.net", "y.example.net": "allow allow *.example.net:22",
			"_http._tcp.example.org": "allow allow example.org", "_a._b._c.example.org": "deny default:unlisted", "a._tcp.example.org": "deny default:unlisted",
			"_tcp.x.example.net": "allow allow *.example.net:22", "secret-data.example.com": "deny default:unlisted", "_": "deny default:unlisted",
		},
		"allow example.org; deny _tcp.example.org": {"_tcp.example.org": "deny deny _tcp.example.org"},
	} {
		p := parse(t, text)
		for name, want := range cases {
			if v := p.Lookup(name); v.Action.String()+" "+v.Rule != want {
				t.Errorf("%q: %s: %+v, want %s", text, name, v, want)
			}
		}
	}
}

func TestAnswer(t *testing.T) {
	for text, cases := range map[string]map[string]string{
		"": {"a.example.org=93.184.216.34": "allow default:public", "a.example.org=10.0.0.1": "deny default:private", "a.example.org=169.254.169.254": "deny default:metadata",
			"a.example.org=0.0.0.0": "deny default:invalid", "a.example.org=192.168.1.5": "deny default:host", "a.example.org=10.200.0.1": "deny default:sandbox",
			"a.example.org=::ffff:127.0.0.1": "deny default:loopback", "a.example.org=64:ff9b::7f00:1": "deny default:loopback", "a.example.org=64:ff9b::808:808": "allow default:public"},
		"allow *.example.org@10.0.0.0/8; allow b.test; allow 192.168.7.7:80; allow c.test@169.254.169.254; deny 93.184.216.0/24; deny 8.8.8.8:53": {
			"a.example.org=10.0.0.1": "allow allow *.example.org@10.0.0.0/8", "example.org=10.0.0.1": "deny default:private", "b.test=10.0.0.1": "deny default:private",
			"a.example.org=10.200.0.1": "deny default:sandbox", "b.test=192.168.7.7": "allow allow 192.168.7.7:80", "b.test=192.168.7.8": "deny default:private",
			"c.test=169.254.169.254": "allow allow c.test@169.254.169.254", "b.test=169.254.169.254": "deny default:metadata",
			"b.test=93.184.216.34": "deny deny 93.184.216.0/24", "b.test=8.8.8.8": "allow default:public"},
		"allow *": {"a.test=10.0.0.1": "deny default:private"},
	} {
		p := parse(t, text)
		for in, want := range cases {
			name, addr, _ := strings.Cut(in, "=")
			if v := p.Answer(name, netip.MustParseAddr(addr)); v.Action.String()+" "+v.Rule != want {
				t.Errorf("%q: %s: %+v, want %s", text, in, v, want)
			}
		}
	}
	p := parse(t, "allow example.org; deny *.tracker.test")
	if v := p.Alias("x.cdn.test."); v.Action != policy.Allow {
		t.Errorf("alias: %+v", v)
	}
	if v := p.Alias("x.tracker.test"); v.Action != policy.Deny {
		t.Errorf("alias: %+v", v)
	}
}

func TestCanonicalName(t *testing.T) {
	for in, want := range map[string]string{
		"Example.ORG": "example.org", "example.org.": "example.org", "a": "a", "_x.a-b": "_x.a-b", "1.example": "1.example", "xn--a": "xn--a", "0x.example": "0x.example",
		"": "", ".": "", "a..b": "", ".a": "", "a.b..": "", "a b": "", "a/b": "", "a@b": "", "a:1": "", "[::1]": "", "1.2.3.4": "", "1.2.3.4.": "", "127.1": "", "2130706433": "", "0177.1": "",
		"a.0x7f": "", "a.0X7F": "", "0x": "", "a\n": "", "ä": "", "a\x00": "", "a\\.b": "", "*.a": "", strings.Repeat("a", 63): strings.Repeat("a", 63), strings.Repeat("a", 64): "",
		strings.Repeat("a.", 126) + "a": strings.Repeat("a.", 126) + "a", strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := policy.CanonicalName(in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// TestNamesLife: an address stands for a name as long as the answer said, within bounds, and a little longer.
func TestNamesLife(t *testing.T) {
	a := netip.MustParseAddr("93.184.216.34")
	for ttl, life := range map[time.Duration]time.Duration{
		0: policy.MinLife + policy.Grace, time.Second: policy.MinLife + policy.Grace, 2 * time.Minute: 2*time.Minute + policy.Grace,
		24 * time.Hour: policy.MaxLife + policy.Grace, -time.Hour: policy.MinLife + policy.Grace,
	} {
		c := newClock()
		n := policy.NewNames(c.Now)
		n.Learn("example.org", a, ttl)
		p := parse(t, "allow example.org")
		c.now = c.now.Add(life - 1)
		if v := p.Named(flow(t, "93.184.216.34:443"), n, "example.org", policy.SpokenTLS); v.Action != policy.Allow {
			t.Errorf("%s: %+v before its end", ttl, v)
		}
		c.now = c.now.Add(1)
		if v := p.Named(flow(t, "93.184.216.34:443"), n, "example.org", policy.SpokenTLS); v.Action != policy.Deny {
			t.Errorf("%s: %+v after its end", ttl, v)
		}
		if v := p.Connect(flow(t, "93.184.216.34:443"), n); v.Action != policy.Deny || len(n.Of(a)) != 0 || len(n.Addresses("example.org")) != 0 {
			t.Errorf("%s: %+v, %v after its end", ttl, v, n.Of(a))
		}
	}
	// What is learnt again lives on, and is not cut short by a shorter answer.
	c := newClock()
	n := policy.NewNames(c.Now)
	n.Learn("example.org", a, 5*time.Minute)
	n.Learn("example.org.", netip.MustParseAddr("::ffff:93.184.216.34"), 0)
	c.now = c.now.Add(5 * time.Minute)
	if got := n.Of(a); len(got) != 1 || got[0] != "example.org" {
		t.Errorf("after a shorter answer: %v", got)
	}
	n.Learn("not a name", a, 0)
	n.Learn("example.org", netip.Addr{}, 0)
	if got := n.Of(a); len(got) != 1 {
		t.Errorf("what is no name was learnt: %v", got)
	}
}

// TestNamesBounds: the guest decides how much is learnt.
func TestNamesBounds(t *testing.T) {
	c := newClock()
	n := policy.NewNames(c.Now)
	n.Learn("first.example.org", netip.MustParseAddr("1.1.1.1"), 0)
	for i := range 100 {
		n.Learn("many.example.org", netip.AddrFrom4([4]byte{1, 2, 3, byte(i)}), 0)
		n.Learn(strings.Repeat("a", i%50+1)+strings.Repeat("b", i/50)+".example.org", netip.MustParseAddr("9.9.9.9"), 0)
	}
	if got := len(n.Addresses("many.example.org")); got != 64 {
		t.Errorf("%d addresses of a name", got)
	}
	if got := len(n.Of(netip.MustParseAddr("9.9.9.9"))); got != 64 {
		t.Errorf("%d names of an address", got)
	}
	for i := range 20000 {
		n.Learn("x.example.org", netip.AddrFrom4([4]byte{2, byte(i >> 16), byte(i >> 8), byte(i)}), 0)
		n.Learn(strings.Repeat("y", i%60+1)+"."+strings.Repeat("z", i/60%60+1)+"."+strings.Repeat("w", i/3600+1)+".example.org", netip.AddrFrom4([4]byte{3, byte(i >> 16), byte(i >> 8), byte(i)}), 0)
	}
	if n.Len() > 8192 {
		t.Errorf("%d pairs", n.Len())
	}
	if len(n.Of(netip.MustParseAddr("1.1.1.1"))) != 0 {
		t.Error("what was learnt first outlived all others")
	}
	c.now = c.now.Add(time.Hour)
	n.Learn("last.example.org", netip.MustParseAddr("1.1.1.1"), 0)
	if n.Len() != 1 {
		t.Errorf("%d pairs after an hour", n.Len())
	}
}
