package vsock

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/vmm/api"
)

// The broker socket gives this device its connected sockets: it makes none.

// serveBroker takes the supervisor's messages until ctx ends or the supervisor's end is gone.
func (d *Device) serveBroker(ctx context.Context) {
	d.broker.file.SetDeadline(time.Time{}) // the last Run's end
	undo := d.broker.interruptAfter(ctx)
	defer undo()
	for ctx.Err() == nil {
		m, fd, err := d.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			d.log.Warn("vsock broker is gone", "err", err)
			return
		case m.Op == api.BrokerDial && fd >= 0:
			d.dial(Port(m.GuestPort), fd)
		case m.Op == api.BrokerAccept && fd >= 0:
			d.accept(m.ID, fd)
		case m.Op == api.BrokerRefuse && fd < 0:
			if c := d.table.answer(m.ID); c != nil {
				d.end(c, endReset)
			}
		case fd >= 0:
			unix.Close(fd)
		}
	}
}

// receive reads one message that parses, and the descriptor that came with it or -1.
func (d *Device) receive() (m api.BrokerMessage, fd int, err error) {
	var p [api.BrokerMessageSize + 1]byte
	oob := make([]byte, rights.Space(1))
	for {
		var n, oobn int
		if e := d.broker.raw.Read(func(s uintptr) bool {
			for {
				n, oobn, _, _, err = unix.Recvmsg(int(s), p[:], oob, unix.MSG_CMSG_CLOEXEC)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		}); e != nil {
			return m, -1, e
		}
		fd = -1
		if fds := rights.Take(oob[:max(oobn, 0)], 1); len(fds) > 0 {
			fd = fds[0]
		}
		switch {
		case err != nil:
			return m, -1, os.NewSyscallError("recvmsg", err)
		case n == 0:
			return m, -1, io.EOF
		}
		if m, err = api.ParseBrokerMessage(p[:n]); err == nil {
			return m, fd, nil
		}
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// send writes one message without waiting. It reports false when the supervisor does not take it.
func (d *Device) send(m api.BrokerMessage) bool {
	if d.broker.file == nil {
		return false
	}
	var p [api.BrokerMessageSize]byte
	m.AppendTo(p[:0])
	var err error
	e := d.broker.raw.Control(func(s uintptr) {
		for {
			if _, err = unix.Write(int(s), p[:]); err != unix.EINTR {
				return
			}
		}
	})
	return e == nil && err == nil
}

// makeRoom forgets the oldest connection that is over when the table is full.
func (d *Device) makeRoom() {
	if full, c := d.table.full(); full && c != nil {
		d.counters.evicted.Add(1)
		d.end(c, endReset)
	}
}

// dial joins the socket fd to a port of the guest.
func (d *Device) dial(guest Port, fd int) {
	s, err := newSocket(fd)
	if err != nil {
		d.log.Warn("take over dialled socket", "err", err)
		return
	}
	c := d.newConn(dialling)
	c.sock, c.owed = s, oweRequest
	d.makeRoom()
	if !d.table.addDialled(c, guest) {
		d.counters.limited.Add(1)
		s.file.Close()
		return
	}
	d.limitTime(c)
	d.rx.post(c)
}

// ask asks the supervisor whether the guest may connect to k.host.
func (d *Device) ask(k key, h header) {
	c := d.newConn(asking)
	c.out.update(h.credit)
	d.makeRoom()
	if !d.table.addAsked(c, k) {
		d.counters.limited.Add(1)
		d.rx.reply(h.refusal())
		return
	}
	d.limitTime(c)
	if !d.send(api.BrokerMessage{Op: api.BrokerRequest, ID: c.id, GuestPort: uint32(k.guest), HostPort: uint32(k.host)}) {
		d.end(c, endReset)
	}
}

// accept joins the socket fd to the connection that the supervisor was asked about.
func (d *Device) accept(id uint32, fd int) {
	s, err := newSocket(fd)
	if err != nil {
		d.log.Warn("take over accepted socket", "err", err)
		return
	}
	c := d.table.answer(id)
	if c == nil || !c.joined(s) {
		s.file.Close() // the guest has given up
		return
	}
	d.do(c, post|pump)
}

// joined gives c its socket. It reports false if c is not waiting for one any more.
func (c *conn) joined(s socket) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != asking {
		return false
	}
	c.state, c.sock = open, s
	c.owed |= oweResponse
	c.timer.Stop()
	return true
}

// limitTime bounds how long c may be dialling or asking, from now.
func (d *Device) limitTime(c *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == dialling || c.state == asking {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.timer = time.AfterFunc(d.timeout, func() { d.expire(c) })
	}
}

// expire ends c if nobody has answered.
func (d *Device) expire(c *conn) {
	c.mu.Lock()
	pending := c.state == dialling || c.state == asking
	c.mu.Unlock()
	if pending {
		d.counters.expired.Add(1)
		d.end(c, endReset)
	}
}
