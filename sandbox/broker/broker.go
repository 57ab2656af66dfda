// Package broker is the supervisor's end of a guest's vsock. The jailed VMM makes no sockets: connected ones are
// handed to it over a SOCK_SEQPACKET socket, the broker socket, whose messages are api.BrokerMessage.
//
// Both directions give plain stream connections. Dial makes a pair of sockets, hands one to the VMM to be joined to
// a port of the guest, and returns the other. Listen names a host port that the guest may connect to; every other
// port is refused.
package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/vmm/api"
)

// Backlog is how many connections of the guest wait in one Listener to be accepted. Further ones are refused.
const Backlog = 64

// AnyPort is the port of a Listener that takes what no other Listener takes.
const AnyPort = 0xffffffff // VMADDR_PORT_ANY

// ErrPortInUse is returned by Listen for a port that has a Listener.
var ErrPortInUse = errors.New("port in use")

// Broker hands connected sockets to one VMM. All methods may be called from any goroutine.
type Broker struct {
	sock *os.File
	raw  syscall.RawConn
	err  error         // why there is no socket to use
	done chan struct{} // closed when the VMM's end is gone or Close was called

	write sync.Mutex // one message at a time

	mu        sync.Mutex
	closed    bool
	listeners map[uint32]*Listener
}

// New takes over sock, this side's end of the broker socket, and serves the guest's requests until Close or until
// the VMM closes its end. A socket that cannot be used shows in the first Dial.
func New(sock *os.File) *Broker {
	b := &Broker{done: make(chan struct{}), listeners: map[uint32]*Listener{}}
	if b.sock, b.err = pollable(sock); b.err != nil {
		b.shut()
		return b
	}
	if b.raw, b.err = b.sock.SyscallConn(); b.err != nil {
		b.shut()
		return b
	}
	go b.serve()
	return b
}

// pollable gives f's descriptor to the runtime's poller, whatever mode f was opened in. f is closed.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dup error
	if err := raw.Control(func(p uintptr) { fd, dup = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if dup != nil {
		return nil, os.NewSyscallError("fcntl", dup)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "broker"), nil
}

// Dial connects to a port of the guest. The connection is made in the background: a guest that does not listen, or
// does not answer within the VMM's time limit, shows on the first Read as io.EOF, or as ECONNRESET if something was
// written before. The connection is a *net.UnixConn:
// CloseWrite ends one direction, and the guest sees end of file.
func (b *Broker) Dial(ctx context.Context, guestPort uint32) (net.Conn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", guestPort, err)
	}
	conn, theirs, err := pair()
	if err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", guestPort, err)
	}
	defer unix.Close(theirs)
	if err := b.send(ctx, api.BrokerMessage{Op: api.BrokerDial, GuestPort: guestPort}, theirs); err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial guest port %d: %w", guestPort, err)
	}
	return conn, nil
}

// Listen opens a host port to the guest. AnyPort takes every port that has no Listener of its own. Each connection
// accepted is a *net.UnixConn whose remote address is a Port, the guest's.
func (b *Broker) Listen(hostPort uint32) (net.Listener, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("listen on host port %d: %w", hostPort, net.ErrClosed)
	}
	if b.listeners[hostPort] != nil {
		return nil, fmt.Errorf("listen on host port %d: %w", hostPort, ErrPortInUse)
	}
	l := &Listener{broker: b, port: Port(hostPort), backlog: make(chan net.Conn, Backlog), done: make(chan struct{})}
	b.listeners[hostPort] = l
	return l, nil
}

// Close closes the socket and every Listener. Connections that were made live on until the VMM ends.
func (b *Broker) Close() error {
	b.shut()
	if b.sock == nil {
		return nil
	}
	if err := b.sock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close broker: %w", err)
	}
	return nil
}

// Done is closed once the VMM's end of the socket is gone or Close was called.
func (b *Broker) Done() <-chan struct{} { return b.done }

// shut closes the listeners and lets no new one in.
func (b *Broker) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	close(b.done)
	for _, l := range b.listeners {
		l.shut()
	}
	clear(b.listeners)
}

// serve answers the guest's requests.
func (b *Broker) serve() {
	defer b.shut()
	for {
		m, err := b.receive()
		if err != nil {
			return
		}
		if m.Op != api.BrokerRequest {
			continue // the VMM is not trusted: what makes no sense from it is left out
		}
		if !b.accept(m) {
			err = b.send(context.Background(), api.BrokerMessage{Op: api.BrokerRefuse, ID: m.ID}, noFile)
		}
		if err != nil {
			return
		}
	}
}

// accept gives a guest's request to its Listener. It reports false where the request is to be refused.
func (b *Broker) accept(m api.BrokerMessage) bool {
	b.mu.Lock()
	l := b.listeners[m.HostPort]
	if l == nil {
		l = b.listeners[AnyPort]
	}
	b.mu.Unlock()
	if l == nil || !l.reserve() {
		return false
	}
	conn, theirs, err := pair()
	if err != nil {
		l.cancel()
		return false
	}
	defer unix.Close(theirs)
	if err := b.send(context.Background(), api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}, theirs); err != nil {
		l.cancel()
		conn.Close()
		return true // there is no socket left to refuse on
	}
	l.put(&guestConn{UnixConn: conn, guest: Port(m.GuestPort), host: Port(m.HostPort)})
	return true
}

// receive reads one message. Descriptors that come with it are closed: the VMM has none to give.
func (b *Broker) receive() (api.BrokerMessage, error) {
	var msg [api.BrokerMessageSize + 1]byte
	oob := make([]byte, rights.Space(1))
	for {
		var n, oobn int
		var err error
		if e := b.raw.Read(func(fd uintptr) bool {
			for {
				n, oobn, _, _, err = unix.Recvmsg(int(fd), msg[:], oob, unix.MSG_CMSG_CLOEXEC)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		}); e != nil {
			return api.BrokerMessage{}, e
		}
		rights.Take(oob[:max(oobn, 0)], 0)
		switch {
		case err != nil:
			return api.BrokerMessage{}, os.NewSyscallError("recvmsg", err)
		case n == 0:
			return api.BrokerMessage{}, io.EOF
		}
		if m, err := api.ParseBrokerMessage(msg[:n]); err == nil {
			return m, nil
		}
	}
}

// noFile is the descriptor of a message that carries none.
const noFile = -1

// send writes one message with the descriptor give, or noFile. It waits while the VMM's queue is full.
func (b *Broker) send(ctx context.Context, m api.BrokerMessage, give int) error {
	if b.raw == nil {
		return b.err
	}
	b.write.Lock()
	defer b.write.Unlock()
	stop := interrupt(ctx, b.sock)
	defer stop()
	var oob []byte
	if give != noFile {
		oob = unix.UnixRights(give)
	}
	var msg [api.BrokerMessageSize]byte
	m.AppendTo(msg[:0])
	var err error
	e := b.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendmsg(int(fd), msg[:], oob, nil, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case e != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case e != nil:
		return e
	case err != nil:
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}
