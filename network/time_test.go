package network

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkAttach says where the time of an attachment goes, on a network that others are on.
func BenchmarkAttach(b *testing.B) {
	for _, c := range []Choice{{Kind: KindNAT}, {KindInternal, "bench"}} {
		b.Run(c.String(), func(b *testing.B) {
			n := testNetworks(b)
			keep := mustAttach(b, n, Request{Choice: c})
			total := map[string]time.Duration{}
			var detach time.Duration
			for b.Loop() {
				a := mustAttach(b, n, Request{Choice: c})
				for _, s := range a.Steps() {
					total[s.Name] += s.Duration
				}
				if a.Tap != nil {
					a.Tap.Close()
				}
				began := time.Now()
				if err := n.Detach(context.Background(), a.Sandbox); err != nil {
					b.Fatal(err)
				}
				detach += time.Since(began)
			}
			for name, d := range total {
				b.ReportMetric(d.Seconds()*1e3/float64(b.N), "ms:"+strings.ReplaceAll(name, " ", "-"))
			}
			b.ReportMetric(detach.Seconds()*1e3/float64(b.N), "ms:detach")
			n.Detach(context.Background(), keep.Sandbox)
		})
	}
}

// BenchmarkPoolTake is what a pooled network adds to a wake.
func BenchmarkPoolTake(b *testing.B) {
	n := testNetworks(b)
	p := NewPool(n, PoolConfig{Depth: 24, Max: 24})
	r := Request{Choice: Choice{KindInternal, "bench"}}
	if err := p.Keep(context.Background(), r.Class()); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for range 24 {
		r.Sandbox = newID()
		began := time.Now()
		a, err := p.Take(r)
		took = append(took, time.Since(began))
		if err != nil || a == nil {
			b.Fatal(a, err)
		}
		b.Cleanup(func() { a.Tap.Close() })
	}
	slices.Sort(took)
	b.ReportMetric(took[12].Seconds()*1e6, "us:median")
	b.ReportMetric(took[23].Seconds()*1e6, "us:longest")
}
