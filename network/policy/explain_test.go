package policy_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/network/policy"
)

var update = flag.Bool("update", false, "write testdata/explain.txt")

// TestExplain holds explanations in words against testdata/explain.txt.
func TestExplain(t *testing.T) {
	names := table(newClock(), told)
	var b strings.Builder
	for _, c := range []struct{ rules, addresses string }{
		{"", "93.184.216.34 10.0.0.1:80 169.254.169.254 [64:ff9b::a00:1]:22 udp://1.1.1.1:53 icmp://192.168.1.5 example.org unknown.example.com rebind.example.org"},
		{"allow *; deny 1.1.1.1", "93.184.216.34:22 1.1.1.1 [64:ff9b::1.1.1.1]:53 unknown.example.com:22 10.0.0.1"},
		{"allow *; deny *:25; deny udp://*", "mail.example.com:25 udp://time.example.com:123 mail.example.com:587"},
		{"allow *.*; deny evil.example.com:443", "evil.example.com evil.example.com:80 evil.example.com:22"},
		{"allow 0.0.0.0/0; allow 10.0.0.0/8:5432", "10.0.0.1:5432 10.0.0.1:5433 10.200.0.1:5432 127.0.0.1"},
		{"allow example.org; allow *.example.org:22; allow db.internal@10.0.0.0/8:5432; deny v6.example.org",
			"93.184.216.34 93.184.216.34:22 8.8.8.8 example.org example.org:22 www.example.org:22 v6.example.org evil.example.com db.internal:5432 db.internal new.example.org:22 udp://example.org:443 icmp://example.org bücher.example"},
	} {
		p := parse(t, c.rules)
		b.WriteString("# " + c.rules + "\n\n")
		for address := range strings.FieldsSeq(c.addresses) {
			e, err := p.ExplainAddress(names, address)
			if err != nil {
				t.Errorf("%s: %v", address, err)
				continue
			}
			b.WriteString(e.String() + "\n")
			text, err := json.Marshal(e)
			var back policy.Explanation
			if err == nil {
				err = json.Unmarshal(text, &back)
			}
			if err != nil || back.String() != e.String() {
				t.Errorf("%s: %v\n%s\n%s", address, err, text, back)
			}
		}
	}
	golden := filepath.Join("testdata", "explain.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s differs; look at it and run with -update", golden)
	}
}

// TestExplainIsWhatHappens: the verdict of an explanation is the verdict of the flow.
func TestExplainIsWhatHappens(t *testing.T) {
	names := table(newClock(), told)
	for _, text := range []string{"", "allow *", "allow example.org", "allow *.*; deny *.example.org", "allow 10.0.0.0/8; deny 10.1.0.0/16"} {
		p := parse(t, text)
		for _, in := range []string{"93.184.216.34:443", "udp://93.184.216.34:443", "icmp://93.184.216.34", "10.0.0.1:80", "10.1.2.3:1", "104.16.0.1:443", "[64:ff9b::a00:1]:80", "8.8.8.8:80"} {
			e, err := p.ExplainAddress(names, in)
			if v := p.Connect(flow(t, in), names); err != nil || e.Verdict != v || len(e.Steps) == 0 {
				t.Errorf("%q, %s: %+v, explained as %+v, %v", text, in, v, e.Verdict, err)
			}
		}
	}
	p := parse(t, "allow example.org")
	if e, err := p.ExplainAddress(nil, "example.org"); err != nil || e.Verdict.Action != policy.Allow {
		t.Errorf("without names: %+v, %v", e, err)
	}
	for _, in := range []string{"", "tcp://", "1.2.3.4:0", "1.2.3.4:x", "http://example.org", "127.1", "a..b", "icmp://1.2.3.4:80", "[1.2.3.4]:80", strings.Repeat("a", 600), "*.example.org", "10.0.0.0/8"} {
		if e, err := p.ExplainAddress(names, in); !errors.Is(err, policy.ErrAddress) {
			t.Errorf("%.20q: %+v, %v", in, e, err)
		}
	}
}
