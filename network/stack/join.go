package stack

import (
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

// errVanished says that what waited at a socket waits no more.
var errVanished = errors.New("read from a socket: less than there was")

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

// down copies what comes from outside. Nothing is copied in between here either: the stack has the socket read into its segments.
func (c *connection) down(raw syscall.RawConn) error {
	entry, room := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	size := c.chunk()
	var r socketReader
	var result tcpip.Error
	once := func(fd uintptr) bool {
		r, result = socketReader{fd: int(fd)}, nil
		if r.left, r.err = waiting(int(fd), size); r.left == 0 {
			return r.err != unix.EAGAIN
		}
		var n int64
		n, result = c.ep.Write(&r, tcpip.WriteOptions{})
		c.stack.flows.moved(c.flow, 0, int(n))
		return true
	}
	for {
		if err := raw.Read(once); err != nil {
			return err
		}
		switch {
		case r.err != nil:
			return r.err
		case r.left == 0 && result == nil && r.ended():
			c.ep.Shutdown(tcpip.ShutdownWrite) // an error says that the connection is gone, which up finds out
			return nil
		}
		switch result.(type) {
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
}

// waiting is how many bytes a socket has for us, up to limit: none and no error is the end. It asks with MSG_TRUNC, which has nothing copied
// (tcp(7)), so that a segment is made as large as what goes into it: one that holds 64 KiB for a byte would let a guest and its server use
// up our memory between them.
func waiting(fd, limit int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(limit), unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, unix.EAGAIN
	}
	return 0, errno
}

// socketReader is what waits at a socket, for the stack to read.
type socketReader struct {
	fd   int
	left int // that waited and was not read
	read int
	err  error
}

// Len implements tcpip.Payloader.
func (r *socketReader) Len() int { return r.left }

func (r *socketReader) Read(p []byte) (int, error) {
	switch {
	case r.left == 0:
		return 0, io.EOF
	case len(p) == 0: // the stack asks whether this is the end
		return 0, nil
	}
	n, err := unix.Read(r.fd, p[:min(len(p), r.left)])
	if err != nil || n == 0 {
		r.err = errors.Join(errVanished, err) // the connection was reset in between
		return 0, r.err
	}
	r.left, r.read = r.left-n, r.read+n
	return n, nil
}

// ended reports whether nothing waited.
func (r *socketReader) ended() bool { return r.left == 0 && r.read == 0 }

// headers is the most that comes before the payload of a TCP segment: of IPv6, and time stamps.
const headers = header.IPv6MinimumSize + header.TCPMinimumSize + 12

// chunk is how much is read at once: what one segment carries, so that all are full, and no more than the flow's share.
func (c *connection) chunk() int {
	return min(c.stack.cfg.MTU-headers, scratch, int(c.ep.SocketOptions().GetSendBufferSize()))
}
