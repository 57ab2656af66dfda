package resolver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"spore/network/policy"
	"spore/network/resolver"
)

// canned is a connection on which every query gets the same answer, and then the end.
type canned struct {
	net.Conn
	tcp    bool
	answer func(query []byte) []byte
	in     bytes.Buffer
}

func (c *canned) Write(b []byte) (int, error) {
	query := b
	if c.tcp {
		query = b[2:]
	}
	a := c.answer(query)
	if c.tcp {
		c.in.Write(binary.BigEndian.AppendUint16(nil, uint16(len(a))))
	}
	c.in.Write(a)
	return len(b), nil
}

func (c *canned) Read(b []byte) (int, error) {
	if c.in.Len() == 0 {
		return 0, io.EOF
	}
	return c.in.Read(b)
}

func (c *canned) Close() error                { return nil }
func (c *canned) SetDeadline(time.Time) error { return nil }

func cannedDial(answer func(query []byte) []byte) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, _ string) (net.Conn, error) {
		return &canned{tcp: network == "tcp", answer: answer}, nil
	}
}

var fuzzRules = policy.Source{Allow: []string{"example.org", "*.example.org", "db.internal@10.0.0.0/8:5432"}, Deny: []string{"secret.example.org", "9.9.9.0/24"}}

// FuzzQuery: whatever the guest sends, it gets an answer to its question that is no larger than it takes, or none; and nothing leaves but
// questions for allowed names.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"example.org", "secret.example.org", "_a._b.example.org", "box", ".", "a\\000b.example.org", "1.0.0.127.in-addr.arpa"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeHTTPS, dns.TypePTR} {
			wire, _ := query(name, kind).Pack()
			f.Add(wire, false)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, overTCP bool) {
		var r *rig
		r = newRig(t, fuzzRules, func(c *resolver.Config) {
			c.Dial = cannedDial(func(wire []byte) []byte {
				var m dns.Msg
				if err := m.Unpack(wire); err != nil || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 {
					t.Errorf("asked %x, %v", wire, err)
				}
				name, kind := m.Question[0].Name, m.Question[0].Qtype
				if v := r.policy.Lookup(name); v.Action != policy.Allow || kind == dns.TypeHTTPS || kind == dns.TypeSVCB {
					t.Errorf("asked for %s %d: %+v", name, kind, v)
				}
				a := r.up.Zone.Respond(&m)
				wire, _ = a.Pack()
				return wire
			})
		})
		answer := r.Answer(context.Background(), b, overTCP)
		if answer == nil {
			return
		}
		var m dns.Msg
		if err := m.Unpack(answer); err != nil || !bytes.Equal(answer[:2], b[:2]) || !m.Response {
			t.Fatalf("%x answered with %x: %v", b, answer, err)
		}
		limit := 512
		if m.IsEdns0() != nil {
			limit = 1232
		}
		if !overTCP && len(answer) > limit {
			t.Fatalf("%x answered with %d bytes", b, len(answer))
		}
	})
}

// FuzzUpstreamAnswer: whatever an upstream sends, the guest is told nothing but records for its question, at addresses where the policy lets
// the name be; and the policy learns exactly those.
func FuzzUpstreamAnswer(f *testing.F) {
	for _, name := range []string{"example.org", "www.example.org", "half.example.org", "loop.example.org", "db.internal"} {
		r := newRig(f, policy.Source{}, nil)
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeCNAME, dns.TypeMX} {
			m := query(name, kind)
			wire, _ := r.up.Zone.Respond(m).Pack()
			f.Add(wire[12:], uint16(1), uint16(len(r.up.Zone.Respond(m).Answer)), name, kind)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, questions, answers uint16, name string, kind uint16) {
		if len(body) > 4096 {
			return
		}
		r := newRig(t, fuzzRules, func(c *resolver.Config) {
			c.Dial = cannedDial(func(wire []byte) []byte {
				b := append([]byte(nil), wire[:2]...)
				b = append(b, 0x81, 0x80)
				b = binary.BigEndian.AppendUint16(b, questions)
				b = binary.BigEndian.AppendUint16(b, answers)
				b = append(b, 0, 0, 0, 0)
				// The question comes back as it was asked as long as the body begins with one of the same length.
				if q := wire[12 : len(wire)-11]; len(wire) > 23 && len(body) > len(q) && wire[11] == 1 {
					b = append(b, q...)
					return append(b, body[len(q):]...)
				}
				return append(b, body...)
			})
		})
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), kind)
		wire, err := m.Pack()
		if err != nil {
			return
		}
		b := r.Answer(context.Background(), wire, true)
		var a dns.Msg
		if err := a.Unpack(b); err != nil {
			t.Fatalf("answered with %x: %v", b, err)
		}
		told := 0
		for _, rr := range a.Answer {
			h := rr.Header()
			if h.Name != a.Question[0].Name || h.Rrtype != kind || h.Ttl > 300 {
				t.Fatalf("told %s", rr)
			}
			var addr netip.Addr
			switch rr := rr.(type) {
			case *dns.A:
				addr, _ = netip.AddrFromSlice(rr.A.To4())
			case *dns.AAAA:
				addr, _ = netip.AddrFromSlice(rr.AAAA)
			default:
				continue
			}
			if local := strings.Contains("box gateway.spore localhost", strings.ToLower(strings.TrimSuffix(name, "."))); local || strings.HasSuffix(strings.ToLower(name), "localhost") || strings.HasSuffix(strings.ToLower(name), "localhost.") {
				continue
			}
			told++
			if v := r.policy.Answer(h.Name, addr); v.Action != policy.Allow {
				t.Fatalf("told %s: %+v", rr, v)
			}
			if len(r.names.Of(addr)) != 1 {
				t.Fatalf("told %s, learnt %v", rr, r.names.Of(addr))
			}
		}
		if r.names.Len() > told {
			t.Fatalf("told %d addresses, learnt %d", told, r.names.Len())
		}
	})
}
