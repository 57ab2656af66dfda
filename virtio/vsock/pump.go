package vsock

import (
	"context"

	"golang.org/x/sys/unix"
)

// step is what one readiness of a host's socket came to.
type step uint8

const (
	moved   step = iota // bytes went to the guest
	empty               // nothing to read: wait for the socket
	parked              // no receive buffer, no credit or not its turn: wait to be woken
	ended               // end of file
	failed              // the socket failed
	stopped             // the device or the connection no longer moves bytes
)

// pump moves bytes from the host's socket to the guest until the connection or ctx ends. It has a place in c.users.
func (c *conn) pump(ctx context.Context) {
	undo := c.sock.interruptAfter(ctx)
	defer func() {
		undo()
		c.d.rx.forget(c, false)
		c.mu.Lock()
		c.pumping = false
		c.leave()
		c.mu.Unlock()
	}()
	ready := func(fd uintptr) bool {
		c.last = c.d.rx.deliver(c, int(fd))
		return c.last != empty
	}
	for {
		if err := c.sock.raw.Read(ready); err != nil {
			return // interrupted
		}
		switch c.last {
		case moved:
		case parked:
			select {
			case <-c.woken:
			case <-ctx.Done():
				return
			}
		case ended:
			c.watch()
			return
		case failed:
			c.d.end(c, endReset)
			return
		case stopped:
			return
		}
	}
}

// watch tells the guest that the host sends no more, waits until it does not receive any more either, and tells that.
func (c *conn) watch() {
	told := false
	c.sock.raw.Read(func(fd uintptr) bool {
		flags := uint32(shutdownSend)
		if deaf(int(fd)) {
			flags = shutdownBoth
		}
		if !told || flags == shutdownBoth {
			told = true
			c.mu.Lock()
			e := c.hostFinished(flags)
			over := !c.live()
			c.mu.Unlock()
			c.d.do(c, e)
			return over
		}
		return false
	})
}

// flush moves buffered bytes to the host until there are none or ctx ends. It has a place in c.users.
func (c *conn) flush(ctx context.Context) {
	undo := c.sock.interruptAfter(ctx)
	defer undo()
	var pieces [2][]byte
	var done bool
	err := c.sock.raw.Write(func(fd uintptr) bool {
		for {
			var e effect
			var wait bool
			if e, wait, done = c.flushSome(int(fd), pieces[:0]); e != 0 {
				c.d.do(c, e)
			}
			if wait || done {
				return done
			}
		}
	})
	c.mu.Lock()
	if err != nil { // else flushSome has cleared it, and another flusher may have set it
		c.flushing = false
	}
	over := c.state == draining && c.buf.len() == 0
	c.leave()
	c.mu.Unlock()
	if over {
		c.d.end(c, endSilently)
	}
}

// flushSome writes once. wait says that the socket takes nothing now, done that nothing is left to write.
func (c *conn) flushSome(fd int, pieces [][]byte) (e effect, wait, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.buf.len() == 0 {
		c.flushing = false
		return 0, false, true
	}
	n, err := writev(fd, c.buf.view(pieces))
	switch {
	case err == unix.EAGAIN:
		return 0, true, false
	case err != nil:
		c.flushing = false
		return c.hostDeaf(), false, true
	}
	c.buf.discard(n)
	c.forward(n)
	if c.state == open && c.in.due() {
		c.owed |= oweCredit
		e = post
	}
	if c.buf.len() > 0 {
		return e, false, false
	}
	if c.guestDone&shutdownSend != 0 {
		unix.Shutdown(fd, unix.SHUT_WR)
	}
	c.flushing = false
	return e, false, true
}
