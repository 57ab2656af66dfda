package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
	"spore/internal/wire"
	"spore/jailer"
	"spore/network"
	"spore/network/mediator"
)

// The pool is asked on a unix socket in its directory, which is its owner's alone: one frame, one answer. With a shell
// come its control socket and a descriptor of its process, and the connection lasts as long as the shell: when that has
// ended, the pool says how.
type poolRequest struct {
	Verb  poolVerb `json:"verb"`
	Class Class    `json:"class"`

	Network *network.Request `json:"network,omitempty"` // the place that is wanted
	Without []jailer.Layer   `json:"without,omitempty"` // what the jail of its spore-net may lack
}

type poolVerb string

const (
	poolTake  poolVerb = "take"
	poolPlace poolVerb = "place" // on a network
	poolStats poolVerb = "stats"
	poolStop  poolVerb = "stop"
)

type poolReply struct {
	Shell   bool           `json:"shell,omitempty"` // two descriptors follow, beside one byte
	Pid     int            `json:"pid,omitempty"`
	Missing []jailer.Layer `json:"missing,omitempty"`
	Group   string         `json:"group,omitempty"` // its cgroup
	Stats   []ShelfStats   `json:"stats,omitempty"`

	Place     *network.Attachment  `json:"place,omitempty"`
	Forwarder *mediator.Handle     `json:"forwarder,omitempty"` // the spore-net that waits in it
	Files     int                  `json:"files,omitempty"`     // that follow, beside one byte: its tap, or those of the forwarder
	Places    []network.ShelfStats `json:"places,omitempty"`
}

// poolEnd is the second frame of a shell's connection.
type poolEnd struct {
	How string `json:"how,omitempty"` // "" for a good end
}

const (
	poolSocket = "socket"
	poolLock   = "lock"
)

// ErrPoolRuns says that there is a pool already.
var ErrPoolRuns = errors.New("the pool runs already")

// Serve answers until ctx ends or it is told to stop, and returns when what it kept has been given back. ready is called when it can be
// asked. It is called once.
func (p *Pool) Serve(ctx context.Context, ready func()) error {
	dir := p.dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("serve pool: %w", err)
	}
	lock, err := flock.Open(filepath.Join(dir, poolLock), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrPoolRuns
	}
	if err != nil {
		return fmt.Errorf("serve pool: %w", err)
	}
	defer close(p.over)
	defer lock.Close()
	l, err := listenUnix(dir, poolSocket)
	if err != nil {
		return fmt.Errorf("serve pool: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	go p.expire(ctx)
	var places sync.WaitGroup
	defer places.Wait()
	if p.places != nil {
		places.Go(func() {
			if err := p.places.Serve(ctx); err != nil {
				p.host.log().Warn("keep places on networks", "err", err)
			}
		})
	}
	ready()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			stop()
			p.Close()
			os.Remove(filepath.Join(dir, poolSocket)) // or whoever asks waits for nothing; a stale one does no harm
			return nil
		}
		go func() {
			defer conn.Close()
			p.answer(conn, stop)
		}()
	}
}

func (p *Pool) answer(conn *net.UnixConn, stop func()) {
	var r poolRequest
	conn.SetReadDeadline(time.Now().Add(requestLimit))
	if err := wire.Read(conn, &r); err != nil {
		return
	}
	switch r.Verb {
	case poolStats:
		_ = wire.Write(conn, poolReply{Stats: p.Stats(), Places: p.placeStats()}) // a client that has gone needs no answer
	case poolStop:
		stop()
		_ = wire.Write(conn, poolReply{})
		<-p.over // the client waits for the end of the connection
	case poolPlace:
		p.place(conn, r)
	case poolTake:
		p.hand(conn, p.take(r.Class))
	}
}

// hand gives a shell away. When the one who wanted it has gone, it is thrown away.
func (p *Pool) hand(conn *net.UnixConn, sh *shellProcess) {
	if sh == nil {
		_ = wire.Write(conn, poolReply{})
		return
	}
	r := poolReply{Shell: true, Pid: sh.Pid, Missing: sh.Missing}
	if sh.group != nil {
		r.Group = sh.group.Path()
	}
	err := wire.Write(conn, r)
	if err == nil {
		_, _, err = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(sh.control.Fd()), sh.PidFD), nil)
	}
	sh.giveUp() // both are theirs now, or nobody's
	if err != nil {
		sh.Kill()
		return
	}
	<-sh.ended
	_ = wire.Write(conn, poolEnd{How: sh.how})
}
