package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"spore/internal/wire"
	"spore/jailer"
	"spore/network"
	"spore/network/mediator"
)

// takePlace asks the pool in dir for a place on a network that stands ready, and for the spore-net that waits in it. Either is nil
// when there is none. The jail of spore-net lacks no layer but those of without.
func takePlace(dir string, r network.Request, without []jailer.Layer) (*network.Attachment, *mediator.Waiting, error) {
	if dir == "" {
		return nil, nil, nil
	}
	conn, err := dialUnix(dir, poolSocket)
	if err != nil {
		return nil, nil, nil // no pool
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(poolPatience))
	var reply poolReply
	if err = wire.Write(conn, poolRequest{Verb: poolPlace, Network: &r, Without: without}); err == nil {
		err = wire.Read(conn, &reply)
	}
	var waiting *mediator.Waiting
	if err == nil && reply.Place != nil {
		waiting, err = reply.receivePlace(conn)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("take a place on the network from the pool: %w", err)
	}
	return reply.Place, waiting, nil
}

// receivePlace takes over the files that follow a place: its tap, or those of the spore-net in it.
func (r *poolReply) receivePlace(conn *net.UnixConn) (*mediator.Waiting, error) {
	if r.Files <= 0 {
		return nil, nil
	}
	list, err := receiveFiles(conn, min(r.Files, mediator.HandedFiles))
	if err != nil {
		return nil, err
	}
	if r.Forwarder != nil {
		return mediator.Adopt(*r.Forwarder, list)
	}
	r.Place.Tap = list[0]
	return nil, nil
}

// place gives a place on a network away. It is the sandbox's from then on. If that has lost patience meanwhile it has another one, which is
// detached by its name; so what nobody took is left to the sweep, once the sandbox has ended.
func (p *Pool) place(conn *net.UnixConn, r poolRequest) {
	var reply poolReply
	if r.Network == nil || p.places == nil {
		_ = wire.Write(conn, reply) // a client that has gone needs no answer
		return
	}
	p.forwarders.allow(r.Without)
	a, err := p.places.Take(*r.Network)
	if err != nil {
		p.host.log().Warn("take place on the network", "sandbox", r.Network.Sandbox, "err", err)
	}
	if a == nil {
		_ = wire.Write(conn, reply)
		return
	}
	reply.Place = a
	var list []*os.File
	if w := p.forwarders.take(a.ID); w != nil {
		defer w.Forget() // it is theirs now, or nobody's: then it ends
		if fitsJail(w, r.Without) {
			reply.Forwarder, list = &w.Handle, w.Files()
		}
	} else if a.Tap != nil {
		defer a.Tap.Close()
		list = []*os.File{a.Tap}
	}
	reply.Files = len(list)
	if err = wire.Write(conn, reply); err == nil && len(list) > 0 {
		err = sendFiles(conn, list...)
	}
	if err != nil {
		p.host.log().Warn("give a place on the network away", "sandbox", r.Network.Sandbox, "err", err)
	}
}

// fitsJail reports whether a spore-net still waits, in a jail that lacks no layer but those of without.
func fitsJail(w *mediator.Waiting, without []jailer.Layer) bool {
	select {
	case <-w.Ended():
		return false
	default:
	}
	return !slices.ContainsFunc(w.Missing, func(l jailer.Layer) bool { return !slices.Contains(without, l) })
}

// KeepPlaces makes places on a network before anybody wants one, and returns when they stand ready. The jails of the spore-nets that wait in
// them may lack the layers of without, until a sandbox that takes one says otherwise.
func (p *Pool) KeepPlaces(ctx context.Context, r network.Request, without []jailer.Layer) error {
	p.forwarders.allow(without)
	return p.places.Keep(ctx, r.Class())
}

func (p *Pool) placeStats() []network.ShelfStats {
	if p.places == nil {
		return nil
	}
	return p.places.Stats()
}
