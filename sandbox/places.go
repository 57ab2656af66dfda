package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"spore/internal/wire"
	"spore/network"
)

// takePlace asks the pool in dir for a place on a network that stands ready. It returns nil when there is no pool, or none of the kind.
func takePlace(dir string, r network.Request) (*network.Attachment, error) {
	if dir == "" {
		return nil, nil
	}
	conn, err := dialUnix(dir, poolSocket)
	if err != nil {
		return nil, nil // no pool
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(poolPatience))
	var reply poolReply
	if err = wire.Write(conn, poolRequest{Verb: poolPlace, Network: &r}); err == nil {
		err = wire.Read(conn, &reply)
	}
	if err == nil && reply.File && reply.Place != nil {
		var tap *os.File
		if tap, err = receiveFile(conn); err == nil {
			reply.Place.Tap = tap
		}
	}
	if err != nil {
		return nil, fmt.Errorf("take a place on the network from the pool: %w", err)
	}
	return reply.Place, nil
}

// place gives a place on a network away. It is the sandbox's from then on. If that has lost patience meanwhile it has another one, which is
// detached by its name; so what nobody took is left to the sweep, once the sandbox has ended.
func (p *Pool) place(conn *net.UnixConn, r *network.Request) {
	if r == nil || p.places == nil {
		_ = wire.Write(conn, poolReply{}) // a client that has gone needs no answer
		return
	}
	a, err := p.places.Take(*r)
	if err != nil {
		p.host.log().Warn("take place on the network", "sandbox", r.Sandbox, "err", err)
	}
	if a == nil {
		_ = wire.Write(conn, poolReply{})
		return
	}
	err = wire.Write(conn, poolReply{Place: a, File: a.Tap != nil})
	if a.Tap != nil {
		if err == nil {
			err = sendFile(conn, a.Tap)
		}
		a.Tap.Close()
	}
	if err != nil {
		p.host.log().Warn("give a place on the network away", "sandbox", r.Sandbox, "err", err)
	}
}

// KeepPlaces makes places on a network before anybody wants one, and returns when they stand ready.
func (p *Pool) KeepPlaces(ctx context.Context, r network.Request) error {
	return p.places.Keep(ctx, r.Class())
}

func (p *Pool) placeStats() []network.ShelfStats {
	if p.places == nil {
		return nil
	}
	return p.places.Stats()
}
