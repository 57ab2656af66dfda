package resolvertest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/miekg/dns"
)

// Upstream serves a Zone over connections in memory. Its Dial is for resolver.Config. Close ends it.
type Upstream struct {
	Zone Zone
	// Alter, if there, makes the replies to a query in place of the zone: none is silence, several are sent one after the other. answer is
	// what the zone says. It is called by several goroutines at once.
	Alter func(network, address string, query, answer *dns.Msg) [][]byte

	mu      sync.Mutex
	asked   []Asked
	closed  bool
	conns   map[net.Conn]bool
	serving sync.WaitGroup
}

// Asked is one query that came.
type Asked struct {
	Network, Address string
	Message          *dns.Msg
}

// Asked returns what was asked so far.
func (u *Upstream) Asked() []Asked {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Asked(nil), u.asked...)
}

// errClosed is what Dial says after Close.
var errClosed = errors.New("the upstream is closed")

// Dial connects to the upstream, whatever the address is. With "udp" each Read and Write is one datagram.
func (u *Upstream) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	client, server := net.Pipe()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, errClosed
	}
	if u.conns == nil {
		u.conns = map[net.Conn]bool{}
	}
	u.conns[server] = true
	u.serving.Go(func() {
		u.serve(server, network, address)
		u.mu.Lock()
		delete(u.conns, server)
		u.mu.Unlock()
	})
	return client, nil
}

// Close ends all connections and waits for their goroutines.
func (u *Upstream) Close() {
	u.mu.Lock()
	u.closed = true
	for c := range u.conns {
		c.Close()
	}
	u.mu.Unlock()
	u.serving.Wait()
}

func (u *Upstream) serve(c net.Conn, network, address string) {
	defer c.Close()
	b := make([]byte, 64<<10)
	for {
		var n int
		var err error
		if network == "tcp" {
			if _, err = io.ReadFull(c, b[:2]); err == nil {
				n = int(binary.BigEndian.Uint16(b))
				_, err = io.ReadFull(c, b[:n])
			}
		} else {
			n, err = c.Read(b)
		}
		if err != nil {
			return
		}
		var query dns.Msg
		if query.Unpack(b[:n]) != nil {
			continue
		}
		for _, reply := range u.replies(network, address, &query) {
			if network == "tcp" {
				reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
			}
			if _, err := c.Write(reply); err != nil {
				return
			}
		}
	}
}

func (u *Upstream) replies(network, address string, query *dns.Msg) [][]byte {
	u.mu.Lock()
	u.asked = append(u.asked, Asked{network, address, query})
	alter := u.Alter
	u.mu.Unlock()
	answer := u.Zone.Respond(query)
	if network == "udp" {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		answer.Truncate(size)
	}
	if alter != nil {
		return alter(network, address, query, answer)
	}
	return [][]byte{Pack(answer)}
}

// Pack is a message in wire format; nil if it cannot be written.
func Pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
