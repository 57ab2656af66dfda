package resolver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"spore/network/policy"
	"spore/network/resolver"
	"spore/network/resolver/resolvertest"
)

// TestForgedAnswers: an answer that does not match the question is not taken, however it differs, and nothing is learnt of it.
func TestForgedAnswers(t *testing.T) {
	evil := func(m *dns.Msg) *dns.Msg {
		for _, r := range m.Answer {
			if a, ok := r.(*dns.A); ok {
				a.A = net.IPv4(6, 6, 6, 6)
			}
		}
		return m
	}
	for name, change := range map[string]func(*dns.Msg){
		"id":     func(m *dns.Msg) { m.Id++ },
		"query":  func(m *dns.Msg) { m.Response = false },
		"opcode": func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus },
		"name":   func(m *dns.Msg) { m.Question[0].Name = "evil.example.com." },
		"case":   func(m *dns.Msg) { m.Question[0].Name = flip(m.Question[0].Name) },
		"type":   func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"class":  func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"none":   func(m *dns.Msg) { m.Question = nil },
		"two":    func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, count := range []int{1, 7, 20} { // 20 are more than are read: TCP is asked then
				r := newRig(t, policy.Source{}, nil)
				r.up.Alter = func(network, _ string, q, a *dns.Msg) [][]byte {
					honest := resolvertest.Pack(a)
					if network == "tcp" {
						return [][]byte{honest}
					}
					forged := evil(a.Copy())
					change(forged)
					var all [][]byte
					for range count {
						all = append(all, resolvertest.Pack(forged))
					}
					return append(all, honest)
				}
				if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
					t.Errorf("%d forgeries: %s", count, got)
				}
				if len(r.names.Of(netip.MustParseAddr("6.6.6.6"))) != 0 {
					t.Errorf("%d forgeries: the forged address was learnt", count)
				}
			}
		})
	}
}

// flip changes the case of the first letter.
func flip(s string) string {
	if up := strings.ToUpper(s[:1]); up != s[:1] {
		return up + s[1:]
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// TestPoison: records that were not asked for are not taken from an answer that matches.
func TestPoison(t *testing.T) {
	r := newRig(t, policy.Source{Allow: []string{"example.org", "*.example.org"}}, nil)
	r.up.Alter = func(_, _ string, q, a *dns.Msg) [][]byte {
		for _, text := range []string{"victim.example.org. 60 IN A 6.6.6.6", "www.example.org. 60 IN A 6.6.6.7", "example.org. 60 CH A \\# 4 06060608", "example.org. 60 IN AAAA ::6", "example.org. 60 IN DNAME evil.test."} {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Error(err)
			}
			a.Answer = append(a.Answer, rr)
			a.Ns = append(a.Ns, rr)
			a.Extra = append(a.Extra, rr)
		}
		return [][]byte{resolvertest.Pack(a)}
	}
	if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
		t.Error(got)
	}
	if n := r.names.Len(); n != 1 {
		t.Errorf("%d pairs learnt", n)
	}
}

// TestCase: each question has an id and a mix of cases of its own.
func TestCase(t *testing.T) {
	r := newRig(t, policy.Source{}, nil)
	ids, names := map[uint16]bool{}, map[string]bool{}
	for range 40 {
		r.send(t, query("a-rather-long-name.example.org", dns.TypeA), false)
		r.Forget()
	}
	for _, a := range r.up.Asked() {
		ids[a.Message.Id], names[a.Message.Question[0].Name] = true, true
		if !a.Message.RecursionDesired || a.Message.IsEdns0() == nil || a.Message.IsEdns0().UDPSize() != 1232 {
			t.Fatalf("asked %s", a.Message)
		}
	}
	if len(ids) < 35 || len(names) < 35 {
		t.Errorf("%d ids and %d spellings in 40 questions", len(ids), len(names))
	}
}

// TestTCPFallback: an answer that was cut short, by the server or on the way, is asked for again by TCP.
func TestTCPFallback(t *testing.T) {
	r := newRig(t, policy.Source{}, nil)
	for i := range 100 {
		r.up.Zone.Add(fmt.Sprintf("many.example.org. 60 IN A 93.184.217.%d", i))
	}
	if a := r.send(t, query("many.example.org", dns.TypeA), true); len(a.Answer) != 48 {
		t.Errorf("%d answers", len(a.Answer))
	}
	r.up.Alter = func(network, _ string, q, a *dns.Msg) [][]byte {
		b := resolvertest.Pack(a)
		if network == "udp" {
			b = b[:len(b)-7]
		}
		return [][]byte{b}
	}
	if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
		t.Error(got)
	}
	var networks []string
	for _, a := range r.up.Asked() {
		networks = append(networks, a.Network)
	}
	if got := strings.Join(networks, " "); got != "udp tcp udp tcp" {
		t.Error(got)
	}
}

// TestUpstreams: the next one is asked when one refuses, fails or is silent, and the one that answered is asked first from then on.
func TestUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, policy.Source{}, func(c *resolver.Config) {
			c.Upstreams = nil
			for i := 1; i <= 4; i++ {
				c.Upstreams = append(c.Upstreams, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i)}), 53))
			}
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if address == "127.0.0.3:53" {
					return nil, errors.New("connection refused")
				}
				return dial(ctx, network, address)
			}
		})
		r.up.Alter = func(_, address string, q, a *dns.Msg) [][]byte {
			switch address {
			case "127.0.0.1:53":
				a.Rcode = dns.RcodeRefused
			case "127.0.0.2:53":
				return nil
			}
			return [][]byte{resolvertest.Pack(a)}
		}
		if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
			t.Error(got)
		}
		if got := text(r.send(t, query("example.org", dns.TypeAAAA), false)); got != "NOERROR 2606:2800::34/60" {
			t.Error(got)
		}
		var order []string
		for _, a := range r.up.Asked() {
			order = append(order, strings.TrimSuffix(strings.TrimPrefix(a.Address, "127.0.0."), ":53"))
		}
		if got := strings.Join(order, " "); got != "1 2 4 4" {
			t.Errorf("asked %s", got)
		}
		r.up.Close()
	})
}

// TestOldServer: a server that does not understand EDNS is asked without.
func TestOldServer(t *testing.T) {
	r := newRig(t, policy.Source{}, nil)
	r.up.Alter = func(_, _ string, q, a *dns.Msg) [][]byte {
		if q.IsEdns0() != nil {
			a.Rcode, a.Answer = dns.RcodeFormatError, nil
		}
		return [][]byte{resolvertest.Pack(a)}
	}
	if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
		t.Error(got)
	}
}

// TestSilence: a question ends, whatever the upstreams do, and with the context.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, policy.Source{}, nil)
		r.up.Alter = func(network, _ string, q, a *dns.Msg) [][]byte {
			if network == "udp" {
				a.Truncated = true
				return [][]byte{resolvertest.Pack(a)}
			}
			return nil
		}
		began := time.Now()
		if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "SERVFAIL [23 ]" {
			t.Error(got)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("after %s", took)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		wire, _ := query("example.org", dns.TypeA).Pack()
		began = time.Now()
		var a dns.Msg
		if err := a.Unpack(r.Answer(ctx, wire, false)); err != nil || a.Rcode != dns.RcodeServerFailure || time.Since(began) > 0 {
			t.Errorf("%v, %s after %s", err, &a, time.Since(began))
		}
		r.up.Close()
	})
}

// TestBounded: a guest cannot have more questions open, or asked in a second, than that many.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, policy.Source{}, nil)
		release := make(chan struct{})
		r.up.Alter = func(_, _ string, q, a *dns.Msg) [][]byte {
			<-release
			return [][]byte{resolvertest.Pack(a)}
		}
		results := make(chan int, 300)
		for i := range 300 {
			go func() {
				results <- r.send(t, query(fmt.Sprintf("n%d.example.org", i), dns.TypeA), false).Rcode
			}()
		}
		synctest.Wait()
		if n := len(results); n != 300-64 {
			t.Errorf("%d were refused at once", n)
		}
		close(release)
		synctest.Wait()
		codes := map[int]int{}
		for range 300 {
			codes[<-results]++
		}
		if codes[dns.RcodeServerFailure] != 300-64 || codes[dns.RcodeNameError] != 64 {
			t.Errorf("%v", codes)
		}
		for i := range 1000 {
			r.send(t, query(fmt.Sprintf("m%d.example.org", i), dns.TypeA), false)
		}
		if n := r.asked(); n != 500 {
			t.Errorf("%d questions at once", n)
		}
		r.clock.add(time.Second)
		for i := range 1000 {
			r.send(t, query(fmt.Sprintf("k%d.example.org", i), dns.TypeA), false)
		}
		if n := r.asked(); n != 700 {
			t.Errorf("%d questions a second later", n)
		}
		r.up.Close()
	})
}

// TestNoUpstream: static names are answered, the rest fails at once.
func TestNoUpstream(t *testing.T) {
	r := newRig(t, policy.Source{}, func(c *resolver.Config) { c.Upstreams = nil })
	if got := text(r.send(t, query("box", dns.TypeA), false)); got != "NOERROR 10.0.2.2/60" {
		t.Error(got)
	}
	if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "SERVFAIL [23 ]" {
		t.Error(got)
	}
}

// TestRealSockets asks an upstream on this machine's loopback by UDP and TCP.
func TestRealSockets(t *testing.T) {
	var zone resolvertest.Zone
	if err := zone.Add(records...); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		zone.Add(fmt.Sprintf("many.example.org. 60 IN A 93.184.217.%d", i))
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := zone.Respond(q)
		if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
			a.Truncate(1232)
		}
		w.WriteMsg(a)
	})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skip("the port is taken for TCP")
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		t.Cleanup(func() {
			pc.Close()
			l.Close()
			<-done
		})
	}
	r := newRig(t, policy.Source{}, func(c *resolver.Config) {
		c.Dial, c.Upstreams = nil, []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}
	})
	if got := text(r.send(t, query("example.org", dns.TypeA), false)); got != "NOERROR 93.184.216.34/60" {
		t.Error(got)
	}
	if a := r.send(t, query("many.example.org", dns.TypeA), true); len(a.Answer) != 48 {
		t.Errorf("%d answers", len(a.Answer))
	}
}

func BenchmarkAnswer(b *testing.B) {
	for name, c := range map[string]struct {
		source policy.Source
		name   string
		fresh  bool
	}{
		"cached": {policy.Source{Allow: []string{"example.org"}}, "example.org", false},
		"denied": {policy.Source{Allow: []string{"example.org"}}, "evil.example.com", false},
		"static": {policy.Source{Allow: []string{"example.org"}}, "box", false},
		"asked":  {policy.Source{Allow: []string{"example.org"}}, "example.org", true},
	} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, c.source, func(c *resolver.Config) { c.Record = nil })
			wire, _ := query(c.name, dns.TypeA).Pack()
			b.ReportAllocs()
			for b.Loop() {
				if c.fresh {
					r.Forget()
					r.clock.add(10 * time.Millisecond)
				}
				if r.Answer(context.Background(), wire, false) == nil {
					b.Fatal("no answer")
				}
			}
			runtime.KeepAlive(r)
		})
	}
}
