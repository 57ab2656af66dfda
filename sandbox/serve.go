package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/wire"
	"spore/vmm/api"
)

// Bounds on clients of a supervisor.
const (
	maxClients   = 256
	requestLimit = 10 * time.Second // for a client to say what it wants
	statsLimit   = 10 * time.Second
)

// errKilled is why a sandbox ends that its owner killed.
var errKilled = errors.New("killed by its owner")

// serve answers clients until the listener is closed.
func (v *supervisor) serve(l *net.UnixListener) {
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
			v.answers.Go(func() {
				defer func() { conn.Close(); <-slots }()
				v.answer(conn)
			})
		default:
			conn.Close()
		}
	}
}

// answer reads one request and does it.
func (v *supervisor) answer(conn *net.UnixConn) {
	var r request
	conn.SetReadDeadline(time.Now().Add(requestLimit))
	if err := wire.Read(conn, &r); err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	rep, file, err := v.do(r)
	if err != nil {
		rep.Error = err.Error()
	}
	if file != nil {
		defer file.Close()
		rep.File = true
	}
	if wire.Write(conn, rep) == nil && file != nil {
		// A client that has gone meanwhile needs no answer.
		_ = sendFiles(conn, file)
	}
}

// do carries out one request. A file in the result goes to the client.
func (v *supervisor) do(r request) (rep reply, file *os.File, err error) {
	switch r.Verb {
	case verbDial:
		file, err = v.dial(r.Port)
	case verbAttach:
		file, err = v.attach(r.Stdin)
	case verbSignal:
		err = v.signalCommand(unix.Signal(r.Signal))
	case verbStop:
		v.stop(unix.Signal(r.Signal), r.Grace)
	case verbKill:
		v.cancel(errKilled)
		<-v.ended
	case verbWait:
		<-v.ended
	case verbStats:
		rep.Counters, err = v.counters()
	case verbPause:
		err = v.pause()
	case verbResume:
		err = v.resume()
	case verbSave:
		rep.Saved, err = v.saveTo(r.Dir, r.Live)
	case verbExplain:
		rep.Explanation, err = v.explainNetwork(r.Address)
	case verbAt:
		err = v.at(r.Snapshot)
	default:
		err = fmt.Errorf("unknown request %q", r.Verb)
	}
	select {
	case <-v.ended:
		o := v.outcome
		rep.Outcome = &o
	default:
	}
	return rep, file, err
}

// dial connects a client to a port of the guest: the client gets the socket itself, no byte passes through us.
func (v *supervisor) dial(port uint32) (*os.File, error) {
	if !v.command.running() {
		return nil, errors.New("it is not running yet")
	}
	if v.standsStill() {
		return nil, errPaused
	}
	conn, err := v.machine.broker.Dial(v.ctx, port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("connection is a %T", conn)
	}
	return unixConn.File()
}

// stop signals the command, waits, and ends the sandbox when it has not ended by then.
func (v *supervisor) stop(sig unix.Signal, grace time.Duration) {
	if v.standsStill() {
		_ = v.resume() // if it does not go on, it is killed
	}
	if v.signalCommand(sig) == nil {
		select {
		case <-v.ended:
			return
		case <-time.After(grace):
		}
	}
	v.cancel(errKilled)
	<-v.ended
}

func (v *supervisor) counters() (map[string]map[string]uint64, error) {
	if !v.command.running() {
		return nil, errors.New("it is not running yet")
	}
	ctx, cancel := context.WithTimeout(v.ctx, statsLimit)
	defer cancel()
	rep, err := v.machine.request(ctx, api.Request{Op: api.OpStats})
	if err != nil {
		return nil, err
	}
	net, err := v.netCounters(ctx)
	if net != nil {
		rep.Counters["network"] = net
	}
	return rep.Counters, err
}
