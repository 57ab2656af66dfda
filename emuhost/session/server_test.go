package session

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
)

// client is the other end of a served port, speaking frames by hand.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *frame.Reader
	tag  uint32
}

// socketPair is net.Pipe with buffers: both ends may write at once.
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		ends[i], err = net.FileConn(f)
		_ = f.Close() // FileConn has a copy
		if err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

func serveOne(t *testing.T, s *Server) *client {
	t.Helper()
	inner, outer := socketPair(t)
	s.Port = inner
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		_ = outer.Close()
		<-served
		_ = inner.Close()
	})
	if err := outer.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, conn: outer, in: frame.NewReader(outer)}
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) greet(n frame.Nonce) {
	c.t.Helper()
	c.write(frame.AppendHello(frame.Padding(), n))
	if _, err := c.in.Hunt(&n); err != nil {
		c.t.Fatal(err)
	}
	c.tag = n.Tag()
	c.in.SetTag(c.tag)
}

func (c *client) start(req frame.Start) {
	c.t.Helper()
	b, err := frame.AppendRequest(nil, c.tag, frame.TypeStart, req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(b)
}

// expect reads until a frame of type want and returns its payload.
func (c *client) expect(want frame.Type) []byte {
	c.t.Helper()
	for {
		f, err := c.in.Next()
		if err != nil {
			c.t.Fatalf("wait for type %d: %v", want, err)
		}
		if f.Type == want {
			return bytes.Clone(f.Payload)
		}
		if f.Type == frame.TypeError || f.Type == frame.TypeExit {
			c.t.Fatalf("wait for type %d: type %d, %q", want, f.Type, f.Payload)
		}
	}
}

// TestBrokenClients sends what no client should and expects an error, and the
// next client to be served.
func TestBrokenClients(t *testing.T) {
	run := frame.Start{Args: []string{"cat"}, Env: []string{"PATH=/usr/bin:/bin"}}
	for name, broken := range map[string]func(c *client){
		"wrong tag":     func(c *client) { c.write(frame.Append(nil, c.tag+2, frame.TypeStdin, []byte("x"))) },
		"no JSON":       func(c *client) { c.write(frame.Append(nil, c.tag, frame.TypeStart, []byte("{"))) },
		"no program":    func(c *client) { c.start(frame.Start{}) },
		"signal 0":      func(c *client) { c.start(run); c.write(frame.Append(nil, c.tag, frame.TypeSignal, []byte{0})) },
		"stream 7":      func(c *client) { c.start(run); c.write(frame.Append(nil, c.tag, frame.TypeClose, []byte{7})) },
		"short resize":  func(c *client) { c.start(run); c.write(frame.Append(nil, c.tag, frame.TypeResize, []byte{7})) },
		"guest's frame": func(c *client) { c.start(run); c.write(frame.Append(nil, c.tag, frame.TypeExit, []byte{0, 0})) },
	} {
		t.Run(name, func(t *testing.T) {
			c := serveOne(t, &Server{})
			c.greet(frame.Nonce{1, 1})
			broken(c)
			c.expect(frame.TypeError)
			c.greet(frame.Nonce{2, 2})
			c.start(frame.Start{Args: []string{"/bin/sh", "-c", "exit 4"}})
			if exit, err := frame.ParseExit(c.expect(frame.TypeExit)); err != nil || exit.Code() != 4 {
				t.Errorf("next client: %+v, %v", exit, err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	c := serveOne(t, &Server{Ready: func() bool { return false }})
	c.greet(frame.Nonce{1})
	c.start(frame.Start{Args: []string{"true"}})
	if text := c.expect(frame.TypeError); !bytes.Contains(text, []byte("not configured")) {
		t.Errorf("start: %q", text)
	}
	b, err := frame.AppendRequest(nil, c.tag, frame.TypeConfigure, frame.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	c.write(b)
	if text := c.expect(frame.TypeError); !bytes.Contains(text, []byte("does not configure")) {
		t.Errorf("configure: %q", text)
	}
}

func TestConfigureAndSync(t *testing.T) {
	var got frame.Configuration
	synced := make(chan struct{}, 1)
	c := serveOne(t, &Server{
		Configure: func(c frame.Configuration) error { got = c; return nil },
		Sync:      func() { synced <- struct{}{} },
	})
	c.greet(frame.Nonce{1})
	b, err := frame.AppendRequest(nil, c.tag, frame.TypeConfigure, frame.Configuration{Hostname: "h", Seed: make([]byte, 64)})
	if err != nil {
		t.Fatal(err)
	}
	c.write(b)
	c.expect(frame.TypeStarted)
	if got.Hostname != "h" || len(got.Seed) != 64 {
		t.Errorf("configuration %+v", got)
	}
	c.write(frame.Append(nil, c.tag, frame.TypeSync, nil))
	c.expect(frame.TypeSync)
	<-synced
}

// TestStdinWindow overruns the window of a process that does not read.
func TestStdinWindow(t *testing.T) {
	c := serveOne(t, &Server{})
	c.greet(frame.Nonce{1})
	c.start(frame.Start{Args: []string{"/bin/sleep", "600"}})
	c.expect(frame.TypeStarted)
	failed := make(chan struct{})
	go func() {
		defer close(failed)
		chunk := frame.Append(nil, c.tag, frame.TypeStdin, make([]byte, frame.MaxClientPayload))
		// The pipe takes some, the window the rest; twice both is too much.
		for range 2 * (frame.StdinWindow + 1<<20) / frame.MaxClientPayload {
			if _, err := c.conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	c.expect(frame.TypeError)
	_ = c.conn.Close()
	<-failed
}
