package broker

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a vsock port as a net.Addr.
type Port uint32

// Network is "vsock".
func (p Port) Network() string { return "vsock" }

// String is the port in decimal.
func (p Port) String() string { return strconv.FormatUint(uint64(p), 10) }

// Listener is a host port open to the guest. It is a net.Listener.
type Listener struct {
	broker  *Broker
	port    Port
	backlog chan net.Conn // has room for every connection that is reserved

	mu       sync.Mutex
	reserved int // in backlog, or about to be
	closed   bool
	done     chan struct{}
}

// Accept waits for the guest's next connection. After Close it returns net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		l.cancel()
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.port, Err: net.ErrClosed}
	}
}

// Addr is the host port.
func (l *Listener) Addr() net.Addr { return l.port }

// Close ends the Listener: its port is refused from now on, connections not yet accepted are closed.
func (l *Listener) Close() error {
	l.broker.mu.Lock()
	if l.broker.listeners[uint32(l.port)] == l {
		delete(l.broker.listeners, uint32(l.port))
	}
	l.broker.mu.Unlock()
	l.shut()
	return nil
}

// shut wakes Accept and closes what waits for it.
func (l *Listener) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.done)
	for {
		select {
		case c := <-l.backlog:
			c.Close()
		default:
			return
		}
	}
}

// reserve takes a place in the backlog and reports whether there was one.
func (l *Listener) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.reserved == Backlog {
		return false
	}
	l.reserved++
	return true
}

// cancel gives a place back.
func (l *Listener) cancel() {
	l.mu.Lock()
	l.reserved--
	l.mu.Unlock()
}

// put fills a reserved place.
func (l *Listener) put(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return
	}
	l.backlog <- c
}

// guestConn is a connection that the guest opened.
type guestConn struct {
	*net.UnixConn
	guest, host Port
}

// RemoteAddr is the guest's port.
func (c *guestConn) RemoteAddr() net.Addr { return c.guest }

// LocalAddr is the host port the guest asked for.
func (c *guestConn) LocalAddr() net.Addr { return c.host }

// socketBuffer is what a socket of either end holds for the other, in bytes; the kernel doubles it for its records. It
// takes all that the guest has credit for, so that the VMM seldom has to hold bytes itself.
const socketBuffer = 208 << 10

// pair makes two connected stream sockets: one to use here, one, a bare descriptor, to give away.
func pair() (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, noFile, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer) // slower without, no worse
	}
	ours := os.NewFile(uintptr(fds[0]), "vsock")
	defer ours.Close()
	c, err := net.FileConn(ours) // a duplicate
	if err != nil {
		unix.Close(fds[1])
		return nil, noFile, err
	}
	return c.(*net.UnixConn), fds[1], nil
}

// interrupt makes writes to f return when ctx ends. The function returned undoes it.
func interrupt(ctx context.Context, f *os.File) func() {
	if ctx.Done() == nil {
		return func() {}
	}
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		f.SetWriteDeadline(time.Unix(1, 0))
		close(ran)
	})
	return func() {
		if !stop() {
			<-ran
		}
		f.SetWriteDeadline(time.Time{})
	}
}
