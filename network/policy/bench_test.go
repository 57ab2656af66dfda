package policy_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"spore/network/policy"
)

func BenchmarkConnect(b *testing.B) {
	many := ""
	for i := range 200 {
		many += fmt.Sprintf("allow host%d.example.org; allow *.zone%d.example.net:22; allow 20.%d.0.0/16:443; ", i, i, i)
	}
	names := policy.NewNames(time.Now)
	names.Learn("example.org", netip.MustParseAddr("93.184.216.34"), time.Minute)
	for _, c := range []struct{ name, rules, flow string }{
		{"none/public", "", "93.184.216.34:443"},
		{"none/private", "", "10.0.0.1:443"},
		{"none/public6", "", "[2606:2800::34]:443"},
		{"all", "allow *", "93.184.216.34:443"},
		{"name", "allow example.org", "93.184.216.34:443"},
		{"unlisted", "allow example.org", "8.8.8.8:443"},
		{"600/name", many + "allow example.org", "93.184.216.34:443"},
		{"600/address", many, "20.199.0.1:443"},
	} {
		b.Run(c.name, func(b *testing.B) {
			p, f := parse(b, c.rules), flow(b, c.flow)
			b.ReportAllocs()
			for b.Loop() {
				p.Connect(f, names)
			}
		})
	}
}

func BenchmarkNamed(b *testing.B) {
	names := policy.NewNames(time.Now)
	names.Learn("example.org", netip.MustParseAddr("93.184.216.34"), time.Minute)
	p, f := parse(b, "allow example.org"), flow(b, "93.184.216.34:443")
	b.ReportAllocs()
	for b.Loop() {
		p.Named(f, names, "example.org", policy.SpokenTLS)
	}
}

func BenchmarkLearn(b *testing.B) {
	names := policy.NewNames(time.Now)
	a := netip.MustParseAddr("1.0.0.0")
	b.ReportAllocs()
	for b.Loop() {
		a = a.Next()
		names.Learn("example.org", a, time.Minute)
	}
}
