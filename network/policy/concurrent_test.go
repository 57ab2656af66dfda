package policy_test

import (
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"spore/network/policy"
)

// TestConcurrent has the resolver, the stack and the audit's owner at work at once; the race detector looks on.
func TestConcurrent(t *testing.T) {
	p, names := parse(t, "allow *.example.org; allow *.example.org:22; deny x.example.org"), policy.NewNames(time.Now)
	audit := policy.NewAudit(io.Discard, "0123456789ab", time.Now)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{93, 184, byte(i >> 8), byte(i)}) }
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 500 {
				name := fmt.Sprintf("n%d.example.org", i%50)
				names.Learn(name, addr(i%70), time.Minute)
				f := policy.Flow{Protocol: policy.TCP, Destination: netip.AddrPortFrom(addr(i%70), 443)}
				v := p.Connect(f, names)
				if v.Action != policy.Inspect {
					t.Errorf("%+v", v)
				}
				if v := p.Named(f, names, name, policy.SpokenTLS); v.Action != policy.Allow {
					t.Errorf("%+v", v)
				}
				audit.Record(policy.Event{Action: policy.Deny, Name: name, Rule: "r"})
				if _, err := p.ExplainAddress(names, name); err != nil {
					t.Error(err)
				}
				names.Of(addr(i % 70))
				if worker == 0 && i%100 == 0 {
					if err := audit.Flush(false); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if err := audit.Flush(true); err != nil {
		t.Error(err)
	}
}
