package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/wire"
	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/network"
)

// vmmProcess is the process of a VMM: one that this process started, or a shell out of the pool.
type vmmProcess interface {
	wait() error // until nothing of it is left; how it ended, if not well
	kill()
	pid() int
	missing() []jailer.Layer // of its jail
}

// ownVMM is a VMM that this process started.
type ownVMM struct{ *Jailed }

func (o ownVMM) wait() error {
	st, err := o.Wait()
	if o.PidFD >= 0 {
		unix.Close(o.PidFD)
	}
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	return errors.Join(err, o.Release())
}

func (o ownVMM) kill()                   { o.Kill() }
func (o ownVMM) pid() int                { return o.Pid }
func (o ownVMM) missing() []jailer.Layer { return o.Missing }

// shell is one that was taken out of the pool. The pool is its parent.
type shell struct {
	pool    *net.UnixConn // lasts as long as the shell
	control *os.File      // its control socket
	pidFD   *os.File
	reply   poolReply
}

// poolPatience is how long the pool may take to hand a shell over. It is less than starting one takes.
const poolPatience = 500 * time.Millisecond

// takeShell asks the pool in dir for a shell. It returns nil when there is no pool, or none of the class stands ready.
func takeShell(dir string, c Class) (*shell, error) {
	conn, err := dialUnix(dir, poolSocket)
	if err != nil {
		return nil, nil // no pool
	}
	conn.SetDeadline(time.Now().Add(poolPatience))
	s := &shell{pool: conn}
	if err = wire.Write(conn, poolRequest{Verb: poolTake, Class: c}); err == nil {
		err = wire.Read(conn, &s.reply)
	}
	if err == nil && !s.reply.Shell {
		conn.Close()
		return nil, nil
	}
	if err == nil {
		err = s.receive()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("take a shell from the pool: %w", err)
	}
	conn.SetDeadline(time.Time{})
	return s, nil
}

// receive takes over the two descriptors.
func (s *shell) receive() error {
	list, err := receiveFiles(s.pool, 2)
	if err != nil {
		return err
	}
	s.control, s.pidFD = list[0], list[1]
	return nil
}

// wait hears from the pool how the shell ended. When the pool dies first, its children are nobody's: then the process
// is waited for, and what is left of its jail is taken away here.
func (s *shell) wait() error {
	defer s.pidFD.Close()
	defer s.pool.Close()
	var end poolEnd
	if err := wire.Read(s.pool, &end); err == nil {
		if end.How != "" {
			return errors.New(end.How)
		}
		return nil
	}
	jailer.AwaitEnd(int(s.pidFD.Fd()))
	if s.reply.Group == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cgroupLimit)
	defer cancel()
	return cgroup.Remove(ctx, s.reply.Group)
}

// discard throws away a shell that was not used: it ends when its control socket does, and the pool buries it.
func (s *shell) discard() {
	s.control.Close()
	s.pool.Close()
	s.pidFD.Close()
}

func (s *shell) kill()                   { _ = unix.PidfdSendSignal(int(s.pidFD.Fd()), unix.SIGKILL, nil, 0) } // it may have ended
func (s *shell) pid() int                { return s.reply.Pid }
func (s *shell) missing() []jailer.Layer { return s.reply.Missing }

// AskPool asks the pool in dir for its figures: of shells, and of places on networks. ErrNoPool says that there is none.
func AskPool(dir string) ([]ShelfStats, []network.ShelfStats, error) {
	r, err := askPool(dir, poolStats)
	return r.Stats, r.Places, err
}

// stopLimit is how long a pool that ends may take to give back what it kept.
const stopLimit = time.Minute

// StopPool has the pool in dir end, and returns when it has given back what it kept. Sandboxes that run in its shells go on.
func StopPool(dir string) error {
	conn, _, err := reachPool(dir, poolStop)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(stopLimit))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the pool ends, but has not given back everything within %s", stopLimit)
	}
	return nil // however its process has ended
}

// ErrNoPool says that no pool runs.
var ErrNoPool = errors.New("no pool runs: 'spore pool start' starts one")

func askPool(dir string, verb poolVerb) (poolReply, error) {
	conn, r, err := reachPool(dir, verb)
	if err != nil {
		return r, err
	}
	return r, conn.Close()
}

// reachPool asks the pool and keeps the connection.
func reachPool(dir string, verb poolVerb) (conn *net.UnixConn, r poolReply, err error) {
	if conn, err = dialUnix(dir, poolSocket); err != nil {
		return nil, r, ErrNoPool
	}
	conn.SetDeadline(time.Now().Add(requestLimit))
	if err = wire.Write(conn, poolRequest{Verb: verb}); err == nil {
		err = wire.Read(conn, &r)
	}
	if err != nil {
		conn.Close()
		return nil, r, fmt.Errorf("ask the pool: %w", err)
	}
	return conn, r, nil
}
