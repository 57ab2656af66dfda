// Package proxy looks into connections: it finds out what host a guest means, has the policy judge that, and puts secrets in where they
// belong.
//
// Of TLS it reads the ClientHello, and no further: the name that is asked for is what is judged, and that the guest asks for another
// inside (domain fronting) can be seen by the server only. Of HTTP it reads every request of a connection and writes it anew, so that
// what was judged is what is sent. Only connections to the hosts of a secret are opened: see Secret.
package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"spore/network/policy"
)

// Conn is the guest's side of a connection.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Connection is a connection of the guest's that is to be looked into: it is made on the guest's side, and on no other.
type Connection struct {
	Flow    policy.Flow
	Verdict policy.Verdict                                  // of Policy.Connect
	Guest   Conn                                            // the caller closes it
	Dial    func(ctx context.Context) (*net.TCPConn, error) // to the destination; called once at most
	// Join copies between Guest and outside, which it closes, until both directions have ended. head was read from Guest already.
	Join func(outside *net.TCPConn, head []byte)
}

// Outcome is what became of a Connection.
type Outcome struct {
	Verdict policy.Verdict // of the connection or its first request: Allow or Deny
	Name    string         // that the guest said
	Err     error          // not nil: the guest is to see a reset
}

// Config is what a Proxy is made of.
type Config struct {
	Policy  *policy.Policy
	Names   *policy.Names
	Secrets []Secret
	Roots   []byte             // PEM: who may certify the hosts of secrets
	Sniff   time.Duration      // for the guest's first bytes
	Record  func(policy.Event) // told of denials within a connection that goes on; nil: nobody
	Clock   func() time.Time   // nil is time.Now
}

// Proxy looks into connections. It is safe for use by several goroutines; a nil Proxy never looks.
type Proxy struct {
	cfg       Config
	authority *authority // nil without secrets
	roots     *x509.CertPool
	scrub     []replacement // values that come back

	substitutions atomic.Uint64
}

// New returns a Proxy.
func New(c Config) (*Proxy, error) {
	if c.Record == nil {
		c.Record = func(policy.Event) {}
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	p := &Proxy{cfg: c}
	if len(c.Secrets) == 0 {
		return p, nil
	}
	var hosts []string
	for i, s := range c.Secrets {
		if err := s.validate(c.Secrets[:i]); err != nil {
			return nil, err
		}
		hosts = append(hosts, s.Hosts...)
		p.scrub = append(p.scrub, s.scrubs()...)
	}
	p.roots = x509.NewCertPool()
	if !p.roots.AppendCertsFromPEM(c.Roots) {
		return nil, errors.New("secrets: no certificates to trust were given: a secret's host could not prove that it is that host")
	}
	var err error
	if p.authority, err = newAuthority(hosts, c.Clock()); err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	return p, nil
}

// CA is the certificate, in PEM, that the guest must trust; nil without secrets.
func (p *Proxy) CA() []byte {
	if p.authority == nil {
		return nil
	}
	return p.authority.pem
}

// Substitutions is how many placeholders were replaced by their secrets.
func (p *Proxy) Substitutions() uint64 { return p.substitutions.Load() }

// Answers reports whether a guest whose flow is denied can be told so in the flow itself: by HTTP, or by an alert of TLS.
func (p *Proxy) Answers(f policy.Flow) bool {
	return p != nil && f.Protocol == policy.TCP && (f.Destination.Port() == 80 || f.Destination.Port() == 443)
}

// Wants reports whether a flow that is allowed is to be looked into all the same: it may be one to a secret's host.
func (p *Proxy) Wants(f policy.Flow) bool {
	if p == nil || len(p.cfg.Secrets) == 0 || f.Protocol != policy.TCP {
		return false
	}
	for _, name := range p.cfg.Names.Of(f.Destination.Addr()) {
		if p.covered(name) {
			return true
		}
	}
	return false
}

// covered reports whether any secret is for the host.
func (p *Proxy) covered(host string) bool {
	for _, s := range p.cfg.Secrets {
		if s.Covers(host) {
			return true
		}
	}
	return false
}

// Serve looks into a connection until its end. It returns soon after Guest and what Dial has given are closed; ctx ends no more than
// what is being made.
func (p *Proxy) Serve(ctx context.Context, c Connection) Outcome {
	head, what := sniff(c.Guest, p.cfg.Sniff)
	if c.Verdict.Action == policy.Deny {
		return p.refuse(c, head, what, c.Verdict)
	}
	if what.spoken == policy.SpokenHTTP && !what.http2 && c.Verdict.Action == policy.Inspect {
		return p.serveHTTP(ctx, c, head)
	}
	v := p.cfg.Policy.Named(c.Flow, p.cfg.Names, what.name, what.spoken)
	if v.Action != policy.Allow {
		return p.refuse(c, head, what, v)
	}
	out := Outcome{Verdict: v, Name: what.name}
	if what.spoken == policy.SpokenTLS && p.covered(what.name) {
		out.Err = p.intercept(ctx, c, head, what.name)
		return out
	}
	outside, err := c.Dial(ctx)
	if err != nil {
		out.Err = err
		return out
	}
	c.Join(outside, head)
	return out
}
