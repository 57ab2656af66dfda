package policy_test

import (
	"errors"
	"strings"
	"testing"

	"spore/network/policy"
)

func TestSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"TOKEN@api.example.org":                "api.example.org",
		"TOKEN@API.example.org.,*.example.net": "api.example.org *.example.net",
		"_T1@bücher.example":                   "xn--bcher-kva.example",
		"TOKEN":                                "",
		"TOKEN@":                               "",
		"@api.example.org":                     "",
		"1T@api.example.org":                   "",
		"T=value@api.example.org":              "",
		"T T@api.example.org":                  "",
		"TOKEN@1.2.3.4":                        "",
		"TOKEN@api.example.org:443":            "",
		"TOKEN@*":                              "",
		"TOKEN@*.com":                          "",
		"TOKEN@*.*":                            "",
		"TOKEN@a.*.org":                        "",
		"TOKEN@[::1]":                          "",
		"TOKEN@a.org,":                         "",
		"TOKEN@" + strings.Repeat("a.org,", 40) + "a.org": "",
	} {
		s, err := policy.ParseSecret(text)
		if strings.Join(s.Hosts, " ") != want || (want == "") != errors.Is(err, policy.ErrSecret) {
			t.Errorf("%q: %v, %v; want %q", text, s, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "value") && strings.Contains(text, "=value") && strings.Contains(err.Error(), "=value@") {
			t.Errorf("%q: the error repeats what may be a value: %v", text, err)
		}
	}
	s, _ := policy.ParseSecret("TOKEN@api.example.org,*.example.net")
	for host, want := range map[string]bool{"api.example.org": true, "API.example.org.": true, "x.example.net": true, "a.x.example.net": true,
		"example.net": false, "example.org": false, "x.api.example.org": false, "1.2.3.4": false, "": false, "api.example.org\n": false} {
		if s.Covers(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}

func TestCheckSecret(t *testing.T) {
	for text, want := range map[string]bool{
		"":          true,
		"allow *":   true,
		"allow *.*": true,
		"allow api.example.org; allow *.example.net":            true,
		"allow api.example.org; allow *.net@10.0.0.0/8":         true,
		"allow api.example.org:443; allow *.example.net:80-443": true,
		"allow api.example.org:80; allow *.example.net":         false,
		"allow api.example.org; allow x.example.net":            false,
		"allow api.example.org; allow *.x.example.net":          false,
		"allow *.example.net":                                   false,
		"allow 1.2.3.4":                                         false,
		"allow udp://*":                                         false,
		"allow *:80":                                            false,
		"allow *.*; deny api.example.org":                       false,
		"allow *.*; deny *.example.net:443":                     false,
		"allow *.*; deny x.example.net; deny udp://*":           true,
	} {
		s, err := policy.ParseSecret("TOKEN@api.example.org,*.example.net")
		if err != nil {
			t.Fatal(err)
		}
		if err := parse(t, text).CheckSecret(s); (err == nil) != want || err != nil && (!errors.Is(err, policy.ErrSecret) || !strings.Contains(err.Error(), "add --allow")) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
