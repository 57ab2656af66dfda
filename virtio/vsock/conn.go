package vsock

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// state is where a connection is in its life.
//
//	host dials:     dialling ──RESPONSE──► open ──host closed──► closing ──RST──► gone
//	guest requests: asking ───accept────►   └──guest closed──► draining ──buffer empty──► gone
//
// From every state a reset, a time limit or the limit on connections leads to gone.
type state uint8

const (
	dialling state = iota // REQUEST is owed or sent
	asking                // the supervisor was asked
	open                  // bytes move
	closing               // the host has closed and the guest was told; it will answer with RST
	draining              // the guest has closed and was answered; what it sent last still goes to the host
	gone
)

// owed are the packets without payload that the guest should get, as bits in the order in which they are sent. A
// connection owes each at most once: what waits for a receive buffer is bounded by the number of connections.
type owed uint8

const (
	oweRequest owed = 1 << iota
	oweResponse
	oweCredit
	oweAsk // CREDIT_REQUEST
	oweShutdown
)

// conn is one connection. Its socket is used by at most one pump (host to guest) and one flusher (buffered bytes to
// the host), and under mu by the owner of the transmit queue.
type conn struct {
	d   *Device
	key key    // set before the connection is in the table
	id  uint32 // in api.BrokerRequest; 0 for a connection that the host dialled

	woken chan struct{} // capacity 1: credit came, the receive queue's turn, or the end

	// Owned by receiver.mu.
	queued  bool // in receiver.control
	waiting bool // in receiver.waiting
	turn    bool // was taken out of receiver.waiting and has not had its turn yet

	// Of the pump alone.
	batch int  // receive buffers to try for
	last  step // what the last readiness came to

	mu        sync.Mutex
	state     state
	timer     *time.Timer // while dialling or asking
	sock      socket      // zero while asking
	users     int         // goroutines that use sock
	ended     bool        // sock is to be closed when users is 0
	flushing  bool        // there is a flusher
	pumping   bool        // there is a pump
	owed      owed
	in        receiveCredit
	out       sendCredit
	buf       buffer // what the host's socket did not take; its length is in.held()
	starved   bool   // a credit request was sent for the present lack of credit
	hostDone  uint32 // shutdown flags of the host's side
	guestDone uint32 // shutdown flags of the guest's side
}

func (d *Device) newConn(s state) *conn {
	return &conn{
		d:     d,
		woken: make(chan struct{}, 1),
		batch: 1,
		state: s,
		in:    receiveCredit{size: d.buffer},
		buf:   buffer{limit: int(d.buffer)},
	}
}

// wake lets the pump look again.
func (c *conn) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// over reports whether c only waits to be forgotten.
func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == closing || c.state == draining
}

// header is the header of a packet to the guest. Called with mu held.
func (c *conn) header(op operation) header {
	c.owed &^= oweCredit // every packet carries the credit
	return header{
		srcCID: HostCID, dstCID: c.d.cid, srcPort: c.key.host, dstPort: c.key.guest,
		kind: typeStream, op: op, credit: c.in.tell(),
	}
}

// owes reports whether a packet is owed.
func (c *conn) owes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owed != 0
}

// nextOwed takes the next packet that is owed, and reports whether there was one.
func (c *conn) nextOwed() (header, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	take := func(bit owed, op operation) (header, bool) {
		c.owed &^= bit
		return c.header(op), true
	}
	switch {
	case c.owed&oweRequest != 0:
		return take(oweRequest, opRequest)
	case c.owed&oweResponse != 0:
		return take(oweResponse, opResponse)
	case c.owed&oweShutdown != 0:
		h, ok := take(oweShutdown, opShutdown)
		h.flags = c.hostDone
		return h, ok
	case c.owed&oweAsk != 0:
		return take(oweAsk, opCreditRequest)
	case c.owed&oweCredit != 0:
		return take(oweCredit, opCreditUpdate)
	}
	return header{}, false
}

// effect is what the caller of a method that held mu has to do without it.
type effect uint8

const (
	post    effect = 1 << iota // packets are owed
	pump                       // start the pump
	flush                      // start the flusher
	discard                    // the guest ended the connection: no answer
	finish                     // the guest ended the connection: answer, and let the host have what was sent
	violate                    // the guest broke the protocol: reset
)

// fromGuest takes a packet of the guest's. payload is what follows the header, h.length bytes where h.op carries any.
func (c *conn) fromGuest(h header, payload [][]byte) effect {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.out.update(h.credit) {
		c.d.counters.implausible.Add(1)
	}
	c.wake()
	switch h.op {
	case opReset:
		return discard
	case opCreditUpdate:
		return 0
	case opResponse:
		if c.state != dialling || c.owed&oweRequest != 0 {
			return violate
		}
		c.state = open
		c.timer.Stop()
		return pump
	}
	switch {
	case c.state == closing:
		if h.op == opShutdown && h.flags&shutdownBoth == shutdownBoth {
			return finish
		}
		return 0 // it was under way when the host closed
	case c.state != open:
		return violate
	case h.op == opShutdown:
		return c.guestShutdown(h.flags & shutdownBoth)
	case h.op == opReadWrite:
		return c.guestBytes(h.length, payload)
	case h.op == opCreditRequest:
		c.owed |= oweCredit
		return post
	}
	return violate
}

// guestShutdown ends one or both directions. Called with mu held, in state open.
func (c *conn) guestShutdown(flags uint32) effect {
	fresh := flags &^ c.guestDone
	c.guestDone |= flags
	if c.guestDone == shutdownBoth {
		return finish
	}
	if fresh&shutdownSend != 0 && c.buf.len() == 0 {
		c.sock.shutdown(unix.SHUT_WR) // else the flusher does it
	}
	if fresh&shutdownReceive != 0 {
		c.sock.shutdown(unix.SHUT_RD)
	}
	return 0
}

// guestBytes takes stream bytes: to the host at once as far as it takes them, the rest into the buffer. Called with mu
// held, in state open.
func (c *conn) guestBytes(n uint32, payload [][]byte) effect {
	if c.guestDone&shutdownSend != 0 {
		return violate
	}
	if !c.in.admit(n) {
		c.d.counters.overrun.Add(1)
		return violate
	}
	if c.hostDone&shutdownReceive != 0 || n == 0 {
		c.in.forward(n)
		return 0
	}
	var e effect
	if c.buf.len() == 0 {
		var sent int
		var err error
		c.sock.raw.Control(func(fd uintptr) { sent, err = writev(int(fd), payload) })
		if err != nil && err != unix.EAGAIN {
			c.in.forward(n)
			return c.hostDeaf()
		}
		c.forward(sent)
		payload = advance(payload, sent)
		n -= uint32(sent)
	}
	if n == 0 {
		c.buf.skip()
	} else {
		c.buf.append(payload)
		if !c.flushing {
			c.flushing = true
			c.users++
			e |= flush
		}
	}
	if c.in.due() {
		c.owed |= oweCredit
		e |= post
	}
	return e
}

// forward accounts for n bytes that the host took. Called with mu held.
func (c *conn) forward(n int) {
	c.in.forward(uint32(n))
	c.d.counters.toHost.Add(uint64(n))
}

// live reports whether anything may still come from the host: not once the guest has closed both directions, even if
// the connection is only about to be ended for that. Called with mu held.
func (c *conn) live() bool { return c.state == open && c.guestDone != shutdownBoth }

// hostDeaf notes that the host will not read any more. Called with mu held.
func (c *conn) hostDeaf() effect {
	c.drop()
	return c.hostFinished(shutdownReceive)
}

// hostFinished notes that the host will not do what flags say any more. Called with mu held.
func (c *conn) hostFinished(flags uint32) effect {
	if !c.live() || c.hostDone|flags == c.hostDone {
		return 0
	}
	c.hostDone |= flags
	c.owed |= oweShutdown
	if c.hostDone == shutdownBoth {
		c.state = closing
		c.owed &^= oweCredit | oweAsk
		c.close()
	}
	return post
}

// drop forgets the bytes that nobody will take any more. Called with mu held.
func (c *conn) drop() {
	c.in.forward(c.in.held())
	c.buf = buffer{limit: c.buf.limit}
}

// close closes the socket as soon as nobody uses it. Called with mu held.
func (c *conn) close() {
	c.drop()
	if c.sock.file == nil || c.ended {
		return
	}
	c.ended = true
	if c.users == 0 {
		c.sock.file.Close()
		return
	}
	c.sock.interrupt()
	c.wake()
}

// leave is the end of a goroutine that used the socket. Called with mu held.
func (c *conn) leave() {
	c.users--
	if c.users == 0 && c.ended {
		c.sock.file.Close()
	}
}

// advance drops the first n bytes of pieces.
func advance(pieces [][]byte, n int) [][]byte {
	for len(pieces) > 0 && n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces = pieces[1:]
	}
	if n > 0 {
		pieces[0] = pieces[0][n:]
	}
	return pieces
}
