package emuhost

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
	"spore/internal/flock"
)

// portRetry is how long to wait before looking for a free port again.
const portRetry = 20 * time.Millisecond

// ErrLost is the end of the emulated host, or of the connection to it, in the
// middle of a command.
var ErrLost = errors.New("the emulated host has gone away")

// ErrNotRunning is an attempt to use the host before it was started.
var ErrNotRunning = errors.New("the emulated host is not running; start it with: spore host start")

// connection is a session on a port.
type connection struct {
	conn net.Conn
	in   *frame.Reader
	tag  uint32
	mu   sync.Mutex // guards buf and keeps frames whole
	buf  []byte
	lock *os.File // holds the port; nil for the control port
}

// connect opens a session on the port with that socket. It waits for the
// guest's greeting until ctx ends.
func connect(ctx context.Context, dir, socket string) (*connection, error) {
	conn, err := dialIn(ctx, dir, socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var nonce frame.Nonce
	rand.Read(nonce[:]) // never fails
	c := &connection{conn: conn, in: frame.NewReader(conn), tag: nonce.Tag()}
	_, err = conn.Write(frame.AppendHello(frame.Padding(), nonce))
	if err == nil {
		_, err = c.in.Hunt(&nonce)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("greet the emulated host: %w", err)
	}
	c.in.SetTag(c.tag)
	return c, nil
}

// Close ends the session: the guest kills what runs in it.
func (c *connection) Close() {
	_ = c.conn.Close()
	if c.lock != nil {
		_ = c.lock.Close()
	}
}

// send writes one frame.
func (c *connection) send(t frame.Type, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = frame.Append(c.buf[:0], c.tag, t, payload)
	_, err := c.conn.Write(c.buf)
	return err
}

// request writes a request in as many frames as it takes.
func (c *connection) request(t frame.Type, v any) error {
	b, err := frame.AppendRequest(nil, c.tag, t, v)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err = c.conn.Write(b); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// await reads until a frame of type t, or the guest's error.
func (c *connection) await(t frame.Type) error {
	for {
		f, err := c.in.Next()
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", ErrLost, err)
		case f.Type == frame.TypeError:
			return errors.New("emulated host: " + string(f.Payload))
		case f.Type == t:
			return nil
		}
	}
}

// openPort opens a session on any free port, waiting for one until ctx ends.
func (h *Host) openPort(ctx context.Context) (*connection, error) {
	for {
		first := mathrand.IntN(Ports)
		for i := range Ports {
			name := fmt.Sprintf("port%d", (first+i)%Ports+1)
			lock, err := tryLock(filepath.Join(h.runDir(), name+".lock"))
			if err != nil {
				return nil, err
			}
			if lock == nil {
				continue
			}
			c, err := connect(ctx, h.runDir(), name)
			if err != nil {
				_ = lock.Close()
				if st, statusErr := h.Status(ctx); statusErr == nil && !st.Running {
					return nil, ErrNotRunning
				}
				return nil, err
			}
			c.lock = lock
			return c, nil
		}
		h.cfg.Log.Debug("every port of the emulated host is taken")
		if err := pause(ctx, portRetry); err != nil {
			return nil, fmt.Errorf("wait for a free port of the emulated host: %w", err)
		}
	}
}

// tryLock locks a file and returns it; nil when somebody else holds it.
func tryLock(path string) (*os.File, error) {
	f, err := flock.Open(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return f, err
}

// waitLock locks a file, waiting for it until ctx ends.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := tryLock(path)
		if f != nil || err != nil {
			return f, err
		}
		if err := pause(ctx, portRetry); err != nil {
			return nil, fmt.Errorf("wait for %s: %w", path, err)
		}
	}
}
