package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Errors of asking, for logs.
var (
	errBusy     = errors.New("too many questions at once")
	errNobody   = errors.New("there is no upstream")
	errForeign  = errors.New("answer does not match the question")
	errTooMany  = errors.New("too many answers that do not match the question")
	errRefused  = errors.New("upstream refuses")
	errBroken   = errors.New("answer cannot be read")
	errTooShort = errors.New("answer too long or too short")
)

// maxForeign bounds the datagrams that are read for one question. Whoever guesses ids gets so many guesses, and then TCP is used.
const maxForeign = 8

// budget bounds what a guest makes the host ask of its name servers: a token bucket.
type budget struct {
	mu     sync.Mutex
	tokens float64
	at     time.Time
}

func (b *budget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(maxBurst, b.tokens+maxRate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// ask asks the upstreams in turn, beginning with the one that answered last, until one has answered.
func (s *Server) ask(ctx context.Context, q question) (*dns.Msg, error) {
	if len(s.config.Upstreams) == 0 {
		return nil, errNobody
	}
	select {
	case s.pending <- struct{}{}:
		defer func() { <-s.pending }()
	default:
		return nil, errBusy
	}
	if !s.budget.take(s.config.Clock()) {
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("no upstream answered in time"))
	defer cancel()
	var last error
	for i := range maxAttempts {
		n := (int(s.first.Load()) + i) % len(s.config.Upstreams)
		m, err := s.exchange(ctx, q, s.config.Upstreams[n].String(), i >= len(s.config.Upstreams))
		if err == nil {
			s.first.Store(uint32(n))
			return m, nil
		}
		last = err
		if ctx.Err() != nil {
			return nil, errors.Join(last, context.Cause(ctx))
		}
	}
	return nil, last
}

// exchange asks one upstream by UDP, and by TCP when the answer was cut short or somebody seems to forge answers. plain leaves EDNS
// out, which old servers do not answer.
func (s *Server) exchange(ctx context.Context, q question, upstream string, plain bool) (*dns.Msg, error) {
	sent, wire, err := makeQuery(q, plain)
	if err != nil {
		return nil, err
	}
	m, err := s.exchangeOver(ctx, "udp", upstream, sent, wire)
	// A datagram may also be cut on the way, or be larger than what is read of it.
	if err == nil && m.Truncated || errors.Is(err, errTooMany) || errors.Is(err, errBroken) {
		m, err = s.exchangeOver(ctx, "tcp", upstream, sent, wire)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", upstream, err)
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("ask %s: %w: %s", upstream, errRefused, dns.RcodeToString[m.Rcode])
	}
	return m, nil
}

// makeQuery makes a query with an id that cannot be guessed and the letters of the name in a case that cannot be guessed either, which
// servers repeat (draft-vixie-dnsext-dns0x20).
func makeQuery(q question, plain bool) (*dns.Msg, []byte, error) {
	var random [2 + 32]byte
	rand.Read(random[:]) // never fails
	name := []byte(dns.Fqdn(q.name))
	for i, c := range name {
		if c >= 'a' && c <= 'z' && random[2+i/8]>>(i%8)&1 == 1 {
			name[i] = c - 'a' + 'A'
		}
	}
	m := &dns.Msg{Question: []dns.Question{{Name: string(name), Qtype: q.kind, Qclass: dns.ClassINET}}}
	m.Id, m.RecursionDesired = binary.BigEndian.Uint16(random[:]), true
	if !plain {
		m.SetEdns0(payload, false)
	}
	wire, err := m.Pack()
	if err != nil {
		return nil, nil, fmt.Errorf("pack query: %w", err)
	}
	return m, wire, nil
}

// exchangeOver sends one query over a connection of its own, whose port is random therefore, and waits for its answer.
func (s *Server) exchangeOver(ctx context.Context, network, upstream string, sent *dns.Msg, wire []byte) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTime, errors.New("no answer in time"))
	defer cancel()
	conn, err := s.config.Dial(ctx, network, upstream)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	if network == "tcp" {
		b, err := readFramed(conn)
		if err != nil {
			return nil, err
		}
		return readAnswer(b, sent, false)
	}
	b := make([]byte, maxQuery)
	for range maxForeign {
		n, err := conn.Read(b)
		if err != nil {
			return nil, err
		}
		if m, err := readAnswer(b[:n], sent, true); !errors.Is(err, errForeign) {
			return m, err
		}
	}
	return nil, errTooMany
}

// readFramed reads one message with its length before it, RFC 1035 §4.2.2.
func readFramed(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n < headerSize {
		return nil, errTooShort
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// readAnswer reads an answer to sent, and nothing else. With exact the question must come back in the very case in which it was sent; over
// TCP, where nobody but the server can answer, it need not.
func readAnswer(b []byte, sent *dns.Msg, exact bool) (*dns.Msg, error) {
	if len(b) < headerSize || binary.BigEndian.Uint16(b) != sent.Id {
		return nil, errForeign
	}
	var m dns.Msg
	// A datagram that says of itself that it was cut short may end anywhere.
	if err := m.Unpack(b); err != nil && !m.Truncated {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	if !m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return nil, errForeign
	}
	got, want := m.Question[0], sent.Question[0]
	if got.Qtype != want.Qtype || got.Qclass != want.Qclass || got.Name != want.Name && (exact || !strings.EqualFold(got.Name, want.Name)) {
		return nil, errForeign
	}
	return &m, nil
}
