package stack

import (
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"time"
)

const (
	dnsPort    = 53
	maxQueries = 64               // of the resolver at once
	dnsIdle    = 30 * time.Second // between queries of one connection
	maxQuery   = 4 << 10          // bytes; what is longer is no question
)

// ask has a datagram to our name server answered. What is too much at once is lost; resolvers ask again.
func (s *Stack) ask(guest, us netip.AddrPort, query []byte) {
	s.count.queries.Add(1)
	if len(query) > maxQuery {
		s.count.malformed.Add(1)
		return
	}
	select {
	case s.queries <- struct{}{}:
	default:
		s.count.overload.Add(1)
		return
	}
	s.work.Go(func() {
		defer func() { <-s.queries }()
		if answer := s.cfg.Resolver.Answer(s.ctx, query, false); answer != nil {
			s.datagram(us, guest, answer)
		}
	})
}

// serveDNS answers queries over TCP (RFC 7766), one after another.
func (s *Stack) serveDNS(ctx context.Context, c *connection) {
	var length [2]byte
	for ctx.Err() == nil {
		if c.SetDeadline(time.Now().Add(dnsIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > maxQuery {
			s.count.malformed.Add(1)
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		s.count.queries.Add(1)
		select {
		case s.queries <- struct{}{}:
		case <-ctx.Done():
			return
		}
		answer := s.cfg.Resolver.Answer(ctx, query, true)
		<-s.queries
		if answer == nil || len(answer) > 1<<16-1 {
			return
		}
		// In one segment with its length, or some clients take the first for all.
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
