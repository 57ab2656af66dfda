package stack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"
)

// errAborted says that a connection was reset, by either side or by us.
var errAborted = errors.New("connection reset")

// join copies between the guest and outside, which it closes, until both directions have ended. head is what was read of the guest's
// already.
func (c *connection) join(outside *net.TCPConn, head []byte) {
	c.leadsTo(outside)
	raw, err := outside.SyscallConn()
	if err != nil {
		c.abort()
		return
	}
	var down sync.WaitGroup
	down.Go(func() {
		if c.down(raw) != nil {
			c.abort()
		}
	})
	if c.up(outside, raw, head) != nil {
		c.abort()
	}
	down.Wait()
	c.leadsTo(nil)
	outside.Close()
	c.close()
}

// up copies what the guest sends. Nothing is copied in between: the stack writes its segments to the socket.
func (c *connection) up(outside *net.TCPConn, raw syscall.RawConn, head []byte) error {
	if len(head) > 0 { // has been counted
		if _, err := outside.Write(head); err != nil {
			return err
		}
	}
	entry, more := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	var w socketWriter
	var result tcpip.Error
	once := func(fd uintptr) bool {
		w = socketWriter{fd: int(fd)}
		var r tcpip.ReadResult
		r, result = c.ep.Read(&w, tcpip.ReadOptions{})
		if r.Count > 0 {
			c.stack.flows.moved(c.flow, r.Count, 0)
		}
		return w.err != unix.EAGAIN
	}
	for {
		if err := raw.Write(once); err != nil {
			return err
		}
		if w.err != nil {
			return w.err
		}
		switch result.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-more:
			case <-c.flow.done:
				return errAborted
			}
		case *tcpip.ErrClosedForReceive:
			return outside.CloseWrite()
		default:
			return errAborted
		}
	}
}

// socketWriter writes to a socket and never waits. What did not fit stays with the stack.
type socketWriter struct {
	fd  int
	err error // the last call's; EAGAIN when the socket took less than it was given
}

func (w *socketWriter) Write(p []byte) (int, error) {
	n, err := unix.Write(w.fd, p)
	if err == nil && n < len(p) || err == unix.EINTR {
		err = unix.EAGAIN
	}
	w.err = err
	return max(n, 0), err
}

// scratch is what is read from a socket at once, at most.
const scratch = 64 << 10

// scratches are the buffers of flows that have something to read at the moment.
var scratches = sync.Pool{New: func() any { return new([scratch]byte) }}

// down copies what comes from outside.
func (c *connection) down(raw syscall.RawConn) error {
	entry, room := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	size := c.chunk()
	var b *[scratch]byte
	var n int
	var result error
	once := func(fd uintptr) bool {
		b = scratches.Get().(*[scratch]byte)
		n, result = unix.Read(int(fd), b[:size])
		if result == unix.EAGAIN || result == unix.EINTR {
			scratches.Put(b)
			b = nil
			return false
		}
		return true
	}
	for {
		if err := raw.Read(once); err != nil {
			return err
		}
		var err error
		switch {
		case result != nil:
			err = result
		case n == 0:
			err = io.EOF
		default:
			err = c.give(b[:n], room)
		}
		scratches.Put(b)
		if err == io.EOF {
			c.ep.Shutdown(tcpip.ShutdownWrite) // an error says that the connection is gone, which up finds out
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// headers is the most that comes before the payload of a TCP segment: of IPv6, and time stamps.
const headers = header.IPv6MinimumSize + header.TCPMinimumSize + 12

// chunk is how much is read at once: what one segment carries, so that all are full, and no more than the flow's share.
func (c *connection) chunk() int {
	return min(c.stack.cfg.MTU-headers, scratch, int(c.ep.SocketOptions().GetSendBufferSize()))
}

// give gives the guest all of p.
func (c *connection) give(p []byte, room <-chan struct{}) error {
	var r bytes.Reader
	for len(p) > 0 {
		r.Reset(p)
		n, err := c.ep.Write(&r, tcpip.WriteOptions{})
		if n > 0 {
			c.stack.flows.moved(c.flow, 0, int(n))
			p = p[n:]
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-room:
			case <-c.flow.done:
				return errAborted
			}
		default:
			return errAborted
		}
	}
	return nil
}
