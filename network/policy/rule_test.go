package policy_test

import (
	"errors"
	"strings"
	"testing"

	"spore/network/policy"
)

// TestRules holds what is read, in its canonical form, and what is refused, with words of the reason.
func TestRules(t *testing.T) {
	for text, want := range map[string]string{
		"example.org":                      "example.org",
		"EXAMPLE.Org.":                     "example.org",
		"example.org:443":                  "example.org:443",
		"example.org:8000-8100,22":         "example.org:22,8000-8100",
		"tcp://example.org:22":             "tcp://example.org:22",
		"udp://example.org:3478":           "udp://example.org:3478",
		"icmp://example.org":               "icmp://example.org",
		"*.example.org":                    "*.example.org",
		"*.a.b.example.org:8443":           "*.a.b.example.org:8443",
		"r3---sn-4g5e6nz7.googlevideo.com": "r3---sn-4g5e6nz7.googlevideo.com",
		"my_bucket.s3.amazonaws.com":       "my_bucket.s3.amazonaws.com",
		"db":                               "db",
		"*.internal@10.0.0.0/8":            "*.internal@10.0.0.0/8",
		"db.internal@10.0.0.0/8:5432":      "db.internal@10.0.0.0/8:5432",
		"db.internal@10.1.2.3":             "db.internal@10.1.2.3",
		"db.internal@[fd00::/8]:5432":      "db.internal@[fd00::/8]:5432",
		"db.internal@fd00::/8":             "db.internal@[fd00::/8]",
		"*":                                "*",
		"*:443":                            "*:443",
		"udp://*:53":                       "udp://*:53",
		"*.*":                              "*.*",
		"*.*:443":                          "*.*:443",
		"1.2.3.4":                          "1.2.3.4",
		"1.2.3.4:22":                       "1.2.3.4:22",
		"10.0.0.0/8":                       "10.0.0.0/8",
		"10.0.0.0/8:22,80":                 "10.0.0.0/8:22,80",
		"2001:db8::1":                      "[2001:db8::1]",
		"2001:DB8::/32":                    "[2001:db8::/32]",
		"[2001:db8::1]:443":                "[2001:db8::1]:443",
		"[2001:db8::/32]:443":              "[2001:db8::/32]:443",
		"[2001:db8::]/32:443":              "[2001:db8::/32]:443",
		"[2001:db8::]/32":                  "[2001:db8::/32]",
		"tcp://[::1]:22":                   "tcp://[::1]:22",
		"bücher.example":                   "xn--bcher-kva.example",
		"BÜCHER.example":                   "xn--bcher-kva.example",
		"bu\u0308cher.example":             "xn--bcher-kva.example", // decomposed
		"faß.de":                           "xn--fa-hia.de",         // not fass.de
		"xn--bcher-kva.example":            "xn--bcher-kva.example",
		"ｅｘａｍｐｌｅ。ｏｒｇ":                      "example.org",
		"例え.テスト":                           "xn--r8jz45g.xn--zckzah",
		"аррӏе.com":                        "xn--80ak6aa92e.com", // all Cyrillic: shown in ASCII, and nobody's but that name's

		"":                                "0 bytes",
		" example.org":                    "blanks",
		"example.org\n":                   "blanks",
		"example.org,example.net":         "not a host name",
		strings.Repeat("a.", 300) + "org": "bytes",
		strings.Repeat("a", 64) + ".org":  "label longer than 63",
		"https://example.org/":            `write the host alone: "example.org"`,
		"ftp://example.org":               "tcp://, udp:// and icmp://",
		"example.org/path":                "not about paths",
		"user@example.org":                "no IP address",
		"example..org":                    "empty label",
		"example.org..":                   "empty label",
		".example.org":                    "empty label",
		"-a.example.org":                  "hyphen",
		"exa mple.org":                    "blanks",
		"exam\x00ple.org":                 "blanks",
		"ex*.example.org":                 "* stands alone",
		"a.*.example.org":                 "* stands alone",
		"*.*.example.org":                 "* stands alone",
		"**":                              "* stands alone",
		"*example.org":                    "* stands alone",
		"*.com":                           "anybody can have a name below .com",
		"*.xn--p1ai":                      "anybody can have a name",
		"localhost":                       "the guest itself",
		"a.localhost":                     "the guest itself",
		"x.onion":                         "never resolved",
		// Addresses as only some programs read them.
		"2130706433":          "no IP address",
		"127.1":               "no IP address",
		"0177.0.0.1":          "no IP address",
		"0x7f.0.0.1":          "ends in a number",
		"0x7f000001":          "ends in a number",
		"1.2.3.0x4":           "ends in a number",
		"example.123":         "ends in a number",
		"010.0.0.0/8":         "no range",
		"10.0.0.0/08":         "no range",
		"10.0.0.5/8":          "write 10.0.0.0/8, or 10.0.0.5",
		"::ffff:1.2.3.4":      "write 1.2.3.4",
		"[::ffff:1.2.3.4]:22": "write 1.2.3.4",
		"::ffff:10.0.0.0/104": "as IPv4",
		"0.0.0.0":             "write 0.0.0.0/0",
		"[::]:22":             "write ::/0",
		"fe80::1%eth0":        "no zone",
		"１２７.０.０.１":           "ends in a number",
		"[1.2.3.4]:22":        "brackets are for an IPv6",
		"[2001:db8::1":        "brackets are for an IPv6",
		"[2001:db8::1]443":    "is no port",
		// Ports.
		"example.org:":         "no port after the colon",
		"example.org:0":        "no port",
		"example.org:65536":    "no port",
		"example.org:+80":      "no port",
		"example.org:080":      "no port",
		"example.org:http":     "no port",
		"example.org:90-80":    "write 80-90",
		"example.org:80,80":    "named twice",
		"example.org:80-90,85": "named twice",
		"example.org:80,":      "no port",
		":80":                  "nothing before the port",
		"icmp://1.2.3.4:80":    "ICMP has no ports",
		// What could not be enforced.
		"udp://example.org":         "write udp://example.org:PORT",
		"udp://example.org:443":     "QUIC",
		"udp://example.org:400-500": "QUIC",
		"udp://*.example.org:443":   "QUIC",
		"tcp://example.org":         "which ports?",
		"*.*:22":                    "write *:22",
		"*.*:80-443":                "write *:80-443",
		"tcp://*.*:443":             "write *:443",
		"icmp://*.*":                "write icmp://*",
		"udp://*.*:53":              "write *:53",
		"db@0.0.0.0/0":              "wider than any",
		"db@::/0":                   "wider than any",
		"1.2.3.4@10.0.0.0/8":        "@ goes with a name",
		"*@10.0.0.0/8":              "@ goes with a name",
		"db@":                       "lacks one of the two",
		"@10.0.0.0/8":               "lacks one of the two",
		"db@example.org":            "no IP address",
		// What lies.
		"gооgle.com":            "write xn--ggle-55da.com if it is meant",
		"ехаmple.org":           "look alike",
		"exam\u200bple.org":     "not a host name",
		"exa\u202emple.org":     "not a host name",
		"example.org\u2044path": "not a host name",
		"example.org／path":      "not a host name",
		"a＠10.0.0.1":            "",
		"example。org:４４３":       "no port",
		"xn--a.example":         "not a host name",
		"xn--example-.org":      "not a host name",
		"xn--fa-hia\u00df.de":   "not a host name",
	} {
		p, err := policy.Parse(policy.Source{Allow: []string{text}})
		if err != nil {
			if !errors.Is(err, policy.ErrRule) || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v; want %q", text, err, want)
			}
			continue
		}
		got := p.Rules()[0].String()
		if got != "allow "+want {
			t.Errorf("%q: %q; want %q", text, got, want)
			continue
		}
		again, err := policy.Parse(policy.Source{Allow: []string{want}})
		if err != nil || again.Rules()[0].String() != got {
			t.Errorf("%q: its canonical form %q does not mean the same: %v", text, want, err)
		}
	}
}

// TestRulesTogether holds what is refused beside something else.
func TestRulesTogether(t *testing.T) {
	for text, want := range map[string]string{
		"deny 1.2.3.4":                                             "--allow '*'",
		"deny evil.example.org":                                    "--allow '*.*'",
		"allow *; deny evil.example.org":                           "cannot be held beside --allow *",
		"allow *:443; deny *.evil.example.org":                     "cannot be held beside --allow *:443",
		"allow 0.0.0.0/0; deny evil.example.org":                   "cannot be held",
		"allow 140.82.0.0/16; deny evil.example.org:443":           "cannot be held",
		"allow icmp://*; deny evil.example.org":                    "cannot be held",
		"allow *:22; deny evil.example.org:443":                    "",
		"allow udp://*:123; deny tcp://evil.example.org:443":       "",
		"allow *.*; deny evil.example.org; allow 10.0.0.0/8":       "",
		"allow *.*; deny evil.example.org; allow udp://8.8.8.8:53": "",
		"allow *.example.org; deny evil.example.org":               "",
		"allow example.org; deny x@10.0.0.0/8":                     "leave out @",
		"allow *.com; deny a.com":                                  "anybody",
		"allow a.com; deny *.com":                                  "",
		"allow a.com; deny udp://*":                                "",
		"allow *; deny udp://*.example.org":                        "cannot be held",
	} {
		_, err := policy.Parse(rules(text))
		switch {
		case want == "" && err != nil, want != "" && !errors.Is(err, policy.ErrRule), want != "" && !strings.Contains(err.Error(), want):
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func TestReadSource(t *testing.T) {
	s, err := policy.ReadSource("rules", []byte("# what it needs\n\nallow example.org # the API\n\tdeny  10.0.0.0/8\r\nallow *.example.net:443"))
	if err != nil || strings.Join(s.Allow, " ") != "example.org *.example.net:443" || strings.Join(s.Deny, " ") != "10.0.0.0/8" {
		t.Errorf("%+v, %v", s, err)
	}
	for text, want := range map[string]string{
		"example.org\n":            "rules:1:",
		"\nallow a b\n":            "rules:2:",
		"permit a":                 "write allow RULE or deny RULE",
		"allow":                    "rules:1:",
		"allow \xff":               "UTF-8",
		strings.Repeat("#", 2<<20): "at most",
	} {
		if _, err := policy.ReadSource("rules", []byte(text)); !errors.Is(err, policy.ErrRule) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v; want %q", text, err, want)
		}
	}
	if both := s.And(policy.Source{Allow: []string{"x"}}); len(both.Allow) != 3 || len(both.Deny) != 1 || both.Empty() {
		t.Errorf("%+v", both)
	}
}
