// Package resolver is the guest's name server: it asks the host's for what the policy allows, gives the guest what the policy
// allows of the answers, and notes for the policy which addresses it gave for which name.
package resolver

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"spore/network/policy"
)

// Config is what a Server is made of.
type Config struct {
	Policy *policy.Policy
	// Names learns every address that the guest is told.
	Names *policy.Names
	// Upstreams are asked in turn. None: every question but those that Static answers fails.
	Upstreams []netip.AddrPort
	// Dial makes connections to upstreams; network is "udp" or "tcp". Nil is a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Static is names that are answered here, under no rule: the sandbox's own and the gateway's. Their addresses are not learnt.
	Static map[string][]netip.Addr
	// Record is told of every question that was denied or partly so; nil: nobody.
	Record func(policy.Event)
	// Clock is time.Now when nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Server answers queries. It is safe for use by several goroutines.
type Server struct{}

// New returns a Server.
func New(c Config) (*Server, error) { return &Server{}, nil }

// Answer returns the response to one query in wire format, without TCP's length. Nil means that there is none: what came was no
// query at all, or too much was going on. It returns when ctx ends, and after 10 s at the latest.
func (s *Server) Answer(ctx context.Context, query []byte, overTCP bool) []byte { return nil }
