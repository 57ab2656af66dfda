package policy_test

import (
	"net/netip"
	"testing"

	"spore/network/policy"
)

func TestNamesAddress(t *testing.T) {
	p, err := policy.Parse(policy.Source{Allow: []string{"192.0.2.1:80", "10.0.0.0/8", "db.internal@10.1.2.3/32", "*"}, Deny: []string{"192.0.2.9"}})
	if err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]bool{"192.0.2.1": true, "10.1.2.3": true, "10.1.2.4": false, "192.0.2.9": false, "2001:db8::1": false} {
		if got := p.NamesAddress(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v, want %v", a, got, want)
		}
	}
}
