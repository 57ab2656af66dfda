package policy_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spore/network/policy"
)

// clock is a time that stands still until it is moved.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time { return c.now }

// around is where the tests' policies are used.
var around = policy.Surroundings{
	Host:      []netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("93.184.216.1"), netip.MustParseAddr("2a00:1450::5")},
	Sandboxes: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd53:706f::/32")},
	NAT64:     []netip.Prefix{netip.MustParsePrefix("2a00:64::/96")},
}

// rules splits "allow a; deny b".
func rules(text string) policy.Source {
	var s policy.Source
	for _, r := range strings.Split(text, ";") {
		action, rule, _ := strings.Cut(strings.TrimSpace(r), " ")
		switch action {
		case "allow":
			s.Allow = append(s.Allow, rule)
		case "deny":
			s.Deny = append(s.Deny, rule)
		case "":
		default:
			panic("bug: " + text)
		}
	}
	return s
}

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(rules(text))
	if err != nil {
		t.Fatal(err)
	}
	return p.In(around)
}

// flow reads "udp://1.2.3.4:53"; without a protocol it is TCP.
func flow(t testing.TB, text string) policy.Flow {
	t.Helper()
	proto, rest, ok := strings.Cut(text, "://")
	if !ok {
		proto, rest = "tcp", text
	}
	var f policy.Flow
	if err := f.Protocol.UnmarshalText([]byte(proto)); err != nil {
		t.Fatal(err)
	}
	if f.Protocol == policy.ICMP {
		f.Destination = netip.AddrPortFrom(netip.MustParseAddr(rest), 0)
	} else {
		f.Destination = netip.MustParseAddrPort(rest)
	}
	return f
}

// table is what the name server has told: names and their addresses.
func table(c *clock, text string) *policy.Names {
	n := policy.NewNames(c.Now)
	for _, entry := range strings.Fields(text) {
		name, addr, _ := strings.Cut(entry, "=")
		n.Learn(name, netip.MustParseAddr(addr), 0)
	}
	return n
}

const told = `example.org=93.184.216.34 example.org=2606:2800::34 www.example.org=93.184.216.34
	cdn.example.net=104.16.0.1 victim.example.com=104.16.0.1 db.internal=10.1.2.3 rebind.example.org=10.1.2.3
	meta.example.org=169.254.169.254 host.example.org=192.168.1.5 v6.example.org=2606:2800::6`

func TestConnect(t *testing.T) {
	type flows = map[string]string // flow → action and rule
	for text, cases := range map[string]flows{
		"": {
			"93.184.216.34:443":       "allow default:public",
			"93.184.216.34:22":        "allow default:public",
			"udp://93.184.216.34:443": "allow default:public",
			"icmp://93.184.216.34":    "allow default:public",
			"[2606:2800::34]:443":     "allow default:public",
			"icmp://2606:2800::34":    "allow default:public",
			"10.0.0.1:80":             "deny default:private",
			"172.31.255.255:80":       "deny default:private",
			"172.32.0.1:80":           "allow default:public",
			"192.168.0.1:80":          "deny default:private",
			"192.168.1.5:80":          "deny default:host",
			"93.184.216.1:80":         "deny default:host",
			"[2a00:1450::5]:80":       "deny default:host",
			"icmp://192.168.1.5":      "deny default:host",
			"10.200.3.4:80":           "deny default:sandbox",
			"[fd53:706f::9]:80":       "deny default:sandbox",
			"100.64.0.1:80":           "deny default:private",
			"100.128.0.1:80":          "allow default:public",
			"100.100.100.200:80":      "deny default:metadata",
			"127.0.0.1:80":            "deny default:loopback",
			"127.255.0.1:80":          "deny default:loopback",
			"0.0.0.0:80":              "deny default:invalid",
			"0.1.2.3:80":              "deny default:reserved",
			"169.254.1.1:80":          "deny default:link-local",
			"169.254.169.254:80":      "deny default:metadata",
			"169.254.169.253:53":      "deny default:metadata",
			"169.254.170.2:80":        "deny default:metadata",
			"udp://169.254.169.123:1": "deny default:metadata",
			"168.63.129.16:80":        "deny default:metadata",
			"168.63.129.17:80":        "allow default:public",
			"192.0.0.192:80":          "deny default:metadata",
			"192.0.2.1:80":            "deny default:documentation",
			"192.88.99.1:80":          "deny default:reserved",
			"198.19.255.255:80":       "deny default:private",
			"224.0.0.251:5353":        "deny default:multicast",
			"udp://255.255.255.255:1": "deny default:multicast",
			"240.0.0.1:80":            "deny default:reserved",
			"[::]:80":                 "deny default:invalid",
			"[::1]:80":                "deny default:loopback",
			"[fd00:ec2::254]:80":      "deny default:metadata",
			"[fd20:ce::254]:80":       "deny default:metadata",
			"[fe80::a9fe:a9fe]:80":    "deny default:metadata",
			"[fe80::1]:80":            "deny default:link-local",
			"[fe80::1%eth0]:80":       "deny default:link-local",
			"[fec0::1]:80":            "deny default:private",
			"[fc00::1]:80":            "deny default:private",
			"[ff02::1]:80":            "deny default:multicast",
			"[2001:db8::1]:80":        "deny default:documentation",
			"[3fff::1]:80":            "deny default:documentation",
			"[100::1]:80":             "deny default:reserved",
			"[4000::1]:80":            "deny default:reserved",
			"[5f00::1]:80":            "deny default:reserved",
			"[e000::1]:80":            "deny default:reserved",
			// IPv4 in IPv6's clothes.
			"[::ffff:93.184.216.34]:80":              "allow default:public",
			"[::ffff:10.0.0.1]:80":                   "deny default:private",
			"[::ffff:169.254.169.254]:80":            "deny default:metadata",
			"[::ffff:127.0.0.1]:80":                  "deny default:loopback",
			"[::169.254.169.254]:80":                 "deny default:metadata",
			"[::10.0.0.1]:80":                        "deny default:reserved",
			"[::ffff:0:10.0.0.1]:80":                 "deny default:private",
			"[64:ff9b::93.184.216.34]:80":            "allow default:public",
			"[64:ff9b::10.0.0.1]:80":                 "deny default:private",
			"[64:ff9b::169.254.169.254]:80":          "deny default:metadata",
			"[64:ff9b::192.168.1.5]:80":              "deny default:host",
			"[64:ff9b::93.184.216.1]:80":             "deny default:host",
			"[64:ff9b::10.200.0.1]:80":               "deny default:sandbox",
			"[64:ff9b:1::a00:1]:80":                  "deny default:translation",
			"[2a00:64::10.0.0.1]:80":                 "deny default:private",
			"[2a00:64::169.254.169.254]:80":          "deny default:metadata",
			"[2a00:64::93.184.216.34]:80":            "allow default:public",
			"[2002:a9fe:a9fe::1]:80":                 "deny default:metadata",
			"[2002:5db8:d822::1]:80":                 "deny default:translation",
			"[2001:0:a9fe:a9fe::1]:80":               "deny default:metadata",
			"[2001:0:4136:e378:8000:0:5601:5601]:80": "deny default:metadata",
			"[2001:0:4136:e378:8000:0:f5ff:fffe]:80": "deny default:private",
			// What is no flow.
			"93.184.216.34:0":  "deny default:invalid",
			"dns://1.1.1.1:53": "deny default:invalid",
			"any://1.1.1.1:53": "deny default:invalid",
		},
		"allow *": {
			"93.184.216.34:443":       "allow allow *",
			"udp://93.184.216.34:443": "allow allow *",
			"icmp://93.184.216.34":    "allow allow *",
			"10.0.0.1:80":             "deny default:private",
			"169.254.169.254:80":      "deny default:metadata",
			"192.168.1.5:80":          "deny default:host",
			"93.184.216.1:80":         "deny default:host",
			"[64:ff9b::10.0.0.1]:80":  "deny default:private",
		},
		"allow 0.0.0.0/0; allow ::/0": {
			"93.184.216.34:443":           "allow allow 0.0.0.0/0",
			"[2606:2800::34]:443":         "allow allow [::/0]",
			"10.0.0.1:80":                 "deny default:private",
			"127.0.0.1:80":                "deny default:loopback",
			"169.254.169.254:80":          "deny default:metadata",
			"[fd00:ec2::254]:80":          "deny default:metadata",
			"[::1]:80":                    "deny default:loopback",
			"[64:ff9b::a9fe:a9fe]:80":     "deny default:metadata",
			"[::ffff:169.254.169.254]:80": "deny default:metadata",
		},
		"allow 10.0.0.0/8; allow 169.254.0.0/16; allow fd00::/8; allow 192.168.0.0/16:80": {
			"10.0.0.1:80":            "allow allow 10.0.0.0/8",
			"[::ffff:10.0.0.1]:80":   "allow allow 10.0.0.0/8",
			"[64:ff9b::10.0.0.1]:80": "deny default:private",
			"10.200.0.1:80":          "deny default:sandbox",
			"169.254.7.7:80":         "allow allow 169.254.0.0/16",
			"169.254.169.254:80":     "deny default:metadata",
			"169.254.170.2:80":       "deny default:metadata",
			"[fd00::1]:80":           "allow allow [fd00::/8]",
			"[fd00:ec2::254]:80":     "deny default:metadata",
			"[fd53:706f::1]:80":      "deny default:sandbox",
			"192.168.0.1:80":         "allow allow 192.168.0.0/16:80",
			"udp://192.168.0.1:80":   "allow allow 192.168.0.0/16:80",
			"icmp://192.168.0.1":     "deny default:private",
			"192.168.0.1:81":         "deny default:private",
			"192.168.1.5:80":         "deny default:host",
			"93.184.216.34:443":      "deny default:unlisted",
		},
		"allow 169.254.169.254:80; allow fd00:ec2::254; allow 192.168.1.5:5432; allow 10.200.3.0/24; allow 169.254.169.0/24; allow 64:ff9b::a9fe:a9fe": {
			"169.254.169.254:80":          "allow allow 169.254.169.254:80",
			"[::ffff:169.254.169.254]:80": "allow allow 169.254.169.254:80",
			"[64:ff9b::a9fe:a9fe]:80":     "allow allow [64:ff9b::a9fe:a9fe]",
			"169.254.169.254:81":          "deny default:metadata",
			"169.254.169.253:53":          "deny default:metadata",
			"[fd00:ec2::254]:80":          "allow allow [fd00:ec2::254]",
			"[fd00:ec2::253]:80":          "deny default:metadata",
			"192.168.1.5:5432":            "allow allow 192.168.1.5:5432",
			"192.168.1.5:5433":            "deny default:host",
			"10.200.3.4:80":               "allow allow 10.200.3.0/24",
			"10.200.4.4:80":               "deny default:sandbox",
			"[2a00:64::a9fe:a9fe]:80":     "deny default:metadata",
		},
		"allow 0.0.0.0/8; allow ::/128": {"0.0.0.0:80": "deny default:invalid", "[::]:80": "deny default:invalid", "[::ffff:0.0.0.0]:80": "deny default:invalid", "0.1.0.0:80": "allow allow 0.0.0.0/8"},
		"allow 10.200.0.0/15":           {"10.200.0.1:80": "deny default:sandbox", "10.201.0.1:80": "allow allow 10.200.0.0/15"},
		"allow 64:ff9b::10.0.0.0/104": {
			"[64:ff9b::10.0.0.1]:80":   "allow allow [64:ff9b::a00:0/104]",
			"10.0.0.1:80":              "deny default:private",
			"[64:ff9b::10.200.0.1]:80": "deny default:sandbox",
		},
		"allow *; deny 93.184.216.0/24:25; deny udp://*:53; deny 9.9.9.9": {
			"93.184.216.34:443":      "allow allow *",
			"93.184.216.34:25":       "deny deny 93.184.216.0/24:25",
			"udp://93.184.216.34:25": "deny deny 93.184.216.0/24:25",
			"udp://8.8.8.8:53":       "deny deny udp://*:53",
			"8.8.8.8:53":             "allow allow *",
			"9.9.9.9:80":             "deny deny 9.9.9.9",
			"icmp://9.9.9.9":         "deny deny 9.9.9.9",
			"[::ffff:9.9.9.9]:80":    "deny deny 9.9.9.9",
			"[64:ff9b::9.9.9.9]:80":  "deny deny 9.9.9.9",
			"[2a00:64::9.9.9.9]:80":  "deny deny 9.9.9.9",
			"[2002:909:909::1]:80":   "deny deny 9.9.9.9",
			"udp://[2606::1]:53":     "deny deny udp://*:53",
		},
		"deny 10.1.0.0/16; allow 10.0.0.0/8": { // whatever the order
			"10.0.0.1:80": "allow allow 10.0.0.0/8",
			"10.1.0.1:80": "deny deny 10.1.0.0/16",
		},
		"allow tcp://1.2.3.4:8000-8100,9000": {
			"1.2.3.4:7999":       "deny default:unlisted",
			"1.2.3.4:8000":       "allow allow tcp://1.2.3.4:8000-8100,9000",
			"1.2.3.4:8100":       "allow allow tcp://1.2.3.4:8000-8100,9000",
			"1.2.3.4:8101":       "deny default:unlisted",
			"1.2.3.4:9000":       "allow allow tcp://1.2.3.4:8000-8100,9000",
			"udp://1.2.3.4:8000": "deny default:unlisted",
			"icmp://1.2.3.4":     "deny default:unlisted",
		},
		"allow icmp://*; allow udp://8.8.8.8:53": {
			"icmp://1.1.1.1":   "allow allow icmp://*",
			"1.1.1.1:80":       "deny default:unlisted",
			"udp://8.8.8.8:53": "allow allow udp://8.8.8.8:53",
			"8.8.8.8:53":       "deny default:unlisted",
			"icmp://10.0.0.1":  "deny default:private",
		},
		"allow example.org": {
			"93.184.216.34:443":            "inspect allow example.org",
			"93.184.216.34:80":             "inspect allow example.org",
			"[2606:2800::34]:443":          "inspect allow example.org",
			"[::ffff:93.184.216.34]:443":   "inspect allow example.org",
			"[64:ff9b::93.184.216.34]:443": "deny default:unlisted",
			"93.184.216.34:8443":           "deny default:unlisted",
			"93.184.216.34:22":             "deny default:unlisted",
			"udp://93.184.216.34:443":      "deny default:unlisted",
			"icmp://93.184.216.34":         "deny default:unlisted",
			"93.184.216.35:443":            "deny default:unlisted",
			"104.16.0.1:443":               "deny default:unlisted",
			"10.1.2.3:443":                 "deny default:private",
			"169.254.169.254:80":           "deny default:metadata",
		},
		"allow *.example.org": {
			"93.184.216.34:443":   "inspect allow *.example.org", // www, not the apex
			"[2606:2800::34]:443": "deny default:unlisted",       // the apex alone
			"[2606:2800::6]:443":  "inspect allow *.example.org",
			"10.1.2.3:443":        "deny default:private", // rebind
			"169.254.169.254:80":  "deny default:metadata",
			"192.168.1.5:443":     "deny default:host",
		},
		"allow example.org:22; allow udp://v6.example.org:3478; allow icmp://v6.example.org; allow tcp://www.example.org:443": {
			"93.184.216.34:22":          "inspect allow example.org:22",
			"93.184.216.34:80":          "deny default:unlisted",
			"93.184.216.34:443":         "inspect allow tcp://www.example.org:443",
			"[2606:2800::34]:443":       "deny default:unlisted",
			"udp://[2606:2800::6]:3478": "allow allow udp://v6.example.org:3478",
			"udp://[2606:2800::6]:3479": "deny default:unlisted",
			"[2606:2800::6]:3478":       "deny default:unlisted",
			"icmp://2606:2800::6":       "allow allow icmp://v6.example.org",
			"icmp://2606:2800::34":      "deny default:unlisted",
		},
		"allow db.internal@10.0.0.0/8:5432; allow rebind.example.org": {
			"10.1.2.3:5432": "inspect allow db.internal@10.0.0.0/8:5432",
			"10.1.2.3:443":  "deny default:private",
			"10.1.2.4:5432": "deny default:private",
		},
		"allow host.example.org@192.168.0.0/16": {"192.168.1.5:443": "deny default:host"},
		"allow host.example.org@192.168.1.5":    {"192.168.1.5:443": "inspect allow host.example.org@192.168.1.5"},
		"allow meta.example.org@169.254.0.0/16": {"169.254.169.254:80": "deny default:metadata"},
		"allow meta.example.org@169.254.169.254": {
			"169.254.169.254:80": "inspect allow meta.example.org@169.254.169.254",
			"10.1.2.3:80":        "deny default:private",
		},
		"allow *.example.org; deny www.example.org; allow icmp://*.example.org; allow udp://*.example.org:9": {
			"93.184.216.34:443":     "deny default:unlisted", // example.org is no subdomain, www is denied
			"icmp://93.184.216.34":  "deny deny www.example.org",
			"udp://93.184.216.34:9": "deny deny www.example.org",
			"[2606:2800::6]:443":    "inspect allow *.example.org",
		},
		"allow *.*; deny victim.example.com": {
			"104.16.0.1:443":     "inspect allow *.*",
			"93.184.216.34:443":  "inspect allow *.*",
			"93.184.216.35:443":  "deny default:unlisted", // nobody's address
			"93.184.216.34:8443": "deny default:unlisted",
			"10.1.2.3:443":       "deny default:private",
		},
		"allow *.*; deny *.example.org; allow 10.1.2.3": {"10.1.2.3:443": "inspect allow 10.1.2.3", "udp://10.1.2.3:443": "allow allow 10.1.2.3"},
	} {
		t.Run(text, func(t *testing.T) {
			p, names := parse(t, text), table(newClock(), told)
			for in, want := range cases {
				v := p.Connect(flow(t, in), names)
				if got := v.Action.String() + " " + v.Rule; got != want {
					t.Errorf("%s: %s (%s), want %s", in, got, v.Reason, want)
				}
				if v.Action == policy.Deny && v.Reason == "" {
					t.Errorf("%s: denied without a reason", in)
				}
				if v.Action != policy.Deny && (v.Reason != "" || v.Remedy != "") {
					t.Errorf("%s: allowed with %q, %q", in, v.Reason, v.Remedy)
				}
			}
		})
	}
}

// TestRemedies: what a denial proposes is a rule that can be read, and that allows.
func TestRemedies(t *testing.T) {
	names := table(newClock(), told)
	for _, text := range []string{"", "allow 1.2.3.4", "allow example.org", "allow *.example.org; deny x.example.org", "allow *.*"} {
		p := parse(t, text)
		for _, in := range []string{"10.0.0.1:80", "udp://10.0.0.1:53", "icmp://10.0.0.1", "169.254.169.254:80", "192.168.1.5:1", "[fd00:ec2::254]:80",
			"93.184.216.34:22", "udp://93.184.216.34:22", "udp://93.184.216.34:443", "icmp://93.184.216.34", "8.8.8.8:443", "[2606:2800::1]:22", "icmp://2606:2800::1", "[64:ff9b::10.0.0.1]:1"} {
			f := flow(t, in)
			v := p.Connect(f, names)
			if v.Action != policy.Deny {
				continue
			}
			remedy, ok := strings.CutPrefix(v.Remedy, "--allow ")
			if !ok {
				t.Errorf("%q, %s: remedy %q", text, in, v.Remedy)
				continue
			}
			s := rules(text)
			s.Allow = append(s.Allow, remedy)
			again, err := policy.Parse(s)
			if err != nil {
				t.Errorf("%q, %s: remedy %q: %v", text, in, v.Remedy, err)
				continue
			}
			if w := again.In(around).Connect(f, names); w.Action == policy.Deny {
				t.Errorf("%q, %s: remedy %q does not help: %+v", text, in, v.Remedy, w)
			}
		}
	}
}

// TestNET06Default: what a guest must not reach unless it is named stays denied under every rule that names something else.
func TestNET06Default(t *testing.T) {
	names := table(newClock(), told)
	for _, text := range []string{"", "allow *", "allow 0.0.0.0/0; allow ::/0", "allow 128.0.0.0/1; allow 0.0.0.0/1; allow 8000::/1; allow ::/1", "allow *.*", "allow *.example.org", "allow *:1-65535"} {
		p := parse(t, text)
		for _, a := range []string{"169.254.169.254", "fd00:ec2::254", "169.254.170.2", "100.100.100.200", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254",
			"2002:a9fe:a9fe::", "192.168.1.5", "93.184.216.1", "10.0.0.1", "127.0.0.1", "::1", "10.200.1.1", "fe80::1", "0.0.0.0", "::", "255.255.255.255"} {
			for _, proto := range []policy.Protocol{policy.TCP, policy.UDP, policy.ICMP} {
				f := policy.Flow{Protocol: proto, Destination: netip.AddrPortFrom(netip.MustParseAddr(a), 80)}
				if v := p.Connect(f, names); v.Action != policy.Deny {
					t.Errorf("%q: %s to %s: %+v", text, proto, a, v)
				}
			}
		}
	}
}

func TestErrors(t *testing.T) {
	if _, err := policy.Parse(policy.Source{Allow: make([]string, 2000)}); !errors.Is(err, policy.ErrRule) {
		t.Errorf("2000 rules: %v", err)
	}
}
