package policy_test

import (
	"fmt"
	"net/netip"
	"time"

	"spore/network/policy"
)

func Example() {
	p, err := policy.Parse(policy.Source{Allow: []string{"example.org", "*.example.org:22"}, Deny: []string{"secret.example.org"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	names := policy.NewNames(time.Now)
	// What the name server does with an answer.
	if addr := netip.MustParseAddr("93.184.216.34"); p.Lookup("example.org").Action == policy.Allow && p.Answer("example.org", addr).Action == policy.Allow {
		names.Learn("example.org", addr, time.Minute)
	}
	// What the stack does with a connection, and the proxy with what is said in it.
	f := policy.Flow{Protocol: policy.TCP, Destination: netip.MustParseAddrPort("93.184.216.34:443")}
	fmt.Println(p.Connect(f, names).Action)
	fmt.Println(p.Named(f, names, "example.org", policy.SpokenTLS).Action)
	v := p.Named(f, names, "other.example.com", policy.SpokenTLS)
	fmt.Println(v.Action, "by", v.Rule+":", v.Reason)
	// Output:
	// inspect
	// allow
	// deny by default:unlisted: no rule allows other.example.com
}

func ExampleParse_refused() {
	_, err := policy.Parse(policy.Source{Allow: []string{"udp://example.org:443"}})
	fmt.Println(err)
	// Output:
	// rule refused: allow "udp://example.org:443": QUIC says the name where it cannot be checked, and many names share one address: programs fall back to TCP, for which write example.org; or allow addresses, udp://ADDRESS:443
}
