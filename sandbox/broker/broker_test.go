package broker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"spore/sandbox/broker"
	"spore/vmm/api"
)

const patience = 2 * time.Minute

// vmm is the other end of a broker socket: what the vsock device does, by hand.
type vmm struct {
	t  testing.TB
	fd int
}

func start(t testing.TB) (*broker.Broker, *vmm) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := broker.New(os.NewFile(uintptr(fds[0]), "broker"))
	v := &vmm{t, fds[1]}
	t.Cleanup(func() {
		b.Close()
		v.close()
	})
	return b, v
}

func (v *vmm) close() {
	if v.fd >= 0 {
		unix.Close(v.fd)
		v.fd = -1
	}
}

func (v *vmm) send(m api.BrokerMessage) {
	v.t.Helper()
	if _, err := unix.Write(v.fd, m.AppendTo(nil)); err != nil {
		v.t.Fatal(err)
	}
}

// receive waits for a message and, where it carries one, its connection.
func (v *vmm) receive() (api.BrokerMessage, net.Conn) {
	v.t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(v.fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
		v.t.Fatalf("poll: %d, %v", n, err)
	}
	p, oob := make([]byte, 64), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(v.fd, p, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		v.t.Fatal(err)
	}
	m, err := api.ParseBrokerMessage(p[:n])
	if err != nil {
		v.t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		v.t.Fatal(err)
	}
	if len(msgs) == 0 {
		return m, nil
	}
	got, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(got) != 1 {
		v.t.Fatalf("rights %v, %v", got, err)
	}
	f := os.NewFile(uintptr(got[0]), "handed over")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { c.Close() })
	return m, c
}

func exchange(t testing.TB, a, b net.Conn) {
	t.Helper()
	a.SetDeadline(time.Now().Add(patience))
	b.SetDeadline(time.Now().Add(patience))
	if _, err := a.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := io.ReadFull(b, p); err != nil || string(p) != "ping" {
		t.Fatalf("read %q, %v", p, err)
	}
	if _, err := b.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, p); err != nil || string(p) != "pong" {
		t.Fatalf("read %q, %v", p, err)
	}
}

func TestDialHandsOverOneEnd(t *testing.T) {
	b, v := start(t)
	c, err := b.Dial(t.Context(), 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m, theirs := v.receive()
	if want := (api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1024}); m != want {
		t.Fatalf("message %+v, want %+v", m, want)
	}
	exchange(t, c, theirs)
	theirs.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read after the guest's end: %v, want EOF", err)
	}
}

func TestDialEndsWithContext(t *testing.T) {
	b, _ := start(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := b.Dial(ctx, 1); !errors.Is(err, cause) {
		t.Fatalf("error %v, want %v", err, cause)
	}
}

func TestDialWaitsForAFullQueue(t *testing.T) {
	b, v := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	sent := make(chan struct{})
	go func() {
		for {
			c, err := b.Dial(ctx, 7)
			if err != nil {
				failed <- err
				return
			}
			c.Close()
			select {
			case sent <- struct{}{}:
			case <-ctx.Done():
			}
		}
	}()
	<-sent
	go func() { // once nothing more goes through the dialer waits; ending its context frees it
		for {
			select {
			case <-sent:
			case <-time.After(200 * time.Millisecond):
				cancel()
				return
			}
		}
	}()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want %v", err, context.Canceled)
	}
	// The socket is usable again.
	go func() {
		for {
			if m, _ := v.receive(); m.GuestPort == 8 {
				close(sent)
				return
			}
		}
	}()
	if _, err := b.Dial(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	<-sent
}

func TestListenAcceptsTheGuest(t *testing.T) {
	b, v := start(t)
	l, err := b.Listen(2000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listen(2000); !errors.Is(err, broker.ErrPortInUse) {
		t.Fatalf("second listener: %v", err)
	}
	v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: 9, GuestPort: 555, HostPort: 2000})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RemoteAddr() != broker.Port(555) || c.LocalAddr() != broker.Port(2000) || l.Addr() != broker.Port(2000) {
		t.Errorf("addresses %v, %v, %v", c.RemoteAddr(), c.LocalAddr(), l.Addr())
	}
	m, theirs := v.receive()
	if want := (api.BrokerMessage{Op: api.BrokerAccept, ID: 9}); m != want {
		t.Fatalf("message %+v, want %+v", m, want)
	}
	exchange(t, c, theirs)

	v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: 10, GuestPort: 555, HostPort: 2001})
	m, theirs = v.receive()
	if m.Op != api.BrokerRefuse || m.ID != 10 || theirs != nil {
		t.Fatalf("a port with no listener: %+v, %v", m, theirs)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("accept after close: %v", err)
	}
	v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: 11, GuestPort: 555, HostPort: 2000})
	if m, _ := v.receive(); m.Op != api.BrokerRefuse {
		t.Fatalf("a closed listener: %+v", m)
	}
}

func TestAnyPort(t *testing.T) {
	b, v := start(t)
	l, err := b.Listen(broker.AnyPort)
	if err != nil {
		t.Fatal(err)
	}
	v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: 1, GuestPort: 2, HostPort: 3})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if c.LocalAddr() != broker.Port(3) {
		t.Errorf("local address %v, want 3", c.LocalAddr())
	}
}

func TestBacklogIsBounded(t *testing.T) {
	b, v := start(t)
	l, err := b.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	request := func(i uint32) api.BrokerOp {
		v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: i, HostPort: 1})
		m, c := v.receive()
		if m.ID != i {
			t.Fatalf("answer to %d, want %d", m.ID, i)
		}
		if c != nil {
			t.Cleanup(func() { c.Close() })
		}
		return m.Op
	}
	for i := range uint32(broker.Backlog) {
		if op := request(i); op != api.BrokerAccept {
			t.Fatalf("request %d: verb %d", i, op)
		}
	}
	if op := request(1000); op != api.BrokerRefuse {
		t.Fatalf("request beyond the backlog: verb %d", op)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if op := request(1001); op != api.BrokerAccept {
		t.Fatalf("request after one was accepted: verb %d", op)
	}
}

func TestHostileMessagesAreLeftOut(t *testing.T) {
	b, v := start(t)
	for _, p := range [][]byte{{1}, make([]byte, 15), make([]byte, 17), make([]byte, 16), make([]byte, 4096)} {
		if _, err := unix.Write(v.fd, p); err != nil {
			t.Fatal(err)
		}
	}
	// Its own verbs back at it, with descriptors that must not pile up.
	msg := api.BrokerMessage{Op: api.BrokerDial, GuestPort: 1}.AppendTo(nil)
	for range 100 {
		if err := unix.Sendmsg(v.fd, msg, unix.UnixRights(0), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	v.send(api.BrokerMessage{Op: api.BrokerRequest, ID: 5, HostPort: 1})
	if m, _ := v.receive(); m.Op != api.BrokerRefuse || m.ID != 5 {
		t.Fatalf("answer %+v", m)
	}
	select {
	case <-b.Done():
		t.Fatal("the broker gave up")
	default:
	}
}

func TestLostVMMEndsEverything(t *testing.T) {
	b, v := start(t)
	l, err := b.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	v.close()
	<-b.Done()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := b.Dial(t.Context(), 1); err == nil {
		t.Error("dial to a lost VMM succeeded")
	}
	if _, err := b.Listen(2); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen: %v", err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestUnusableSocket(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	b := broker.New(f)
	<-b.Done()
	if _, err := b.Dial(t.Context(), 1); err == nil {
		t.Error("dial over a closed file succeeded")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestConn holds a dialled connection to what every net.Conn must do.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		b, v := start(t)
		c1, err = b.Dial(t.Context(), 1)
		if err != nil {
			return nil, nil, nil, err
		}
		_, c2 = v.receive()
		return c1, c2, func() {
			c1.Close()
			c2.Close()
			b.Close()
		}, nil
	})
}
