package vsock

import "golang.org/x/sys/unix"

// maxSegments bounds the pieces that the receive buffers of one read may be cut into, below the kernel's 1024.
const maxSegments = 256

// deliver reads from the socket fd straight into receive buffers, as much as the guest has room for.
func (r *receiver) deliver(c *conn, fd int) step {
	r.mu.Lock()
	defer r.unlock()
	if r.q == nil || !r.running() {
		return stopped
	}
	if !r.flush() || (len(r.waiting) > 0 && !c.turn) {
		r.park(c)
		return parked
	}
	s := r.fill(c, fd)
	if c.turn {
		if c.turn = false; s == parked && c.waiting {
			return s // no buffers: the others wait too
		}
		r.next()
	}
	return s
}

// park puts c into waiting: in front if it had its turn and found nothing. Called with mu held.
func (r *receiver) park(c *conn) {
	if c.waiting {
		return
	}
	c.waiting = true
	if c.turn {
		c.turn = false
		r.waiting = append(r.waiting, nil)
		copy(r.waiting[1:], r.waiting)
		r.waiting[0] = c
		return
	}
	r.waiting = append(r.waiting, c)
}

// fill is deliver when it is c's turn.
func (r *receiver) fill(c *conn, fd int) step {
	credit, s := c.sendable()
	if s != moved {
		r.queue(c) // it may ask for credit
		r.flush()
		return s
	}
	r.iov, r.batch, r.caps = r.iov[:0], r.batch[:0], r.caps[:0]
	var total uint64
	for len(r.batch) < c.batch && len(r.iov) < maxSegments && total < uint64(credit) {
		ch := r.chain()
		if ch == nil {
			break
		}
		var n uint64
		r.iov, n = split(ch.Writable, headerSize, r.iov, min(uint64(credit)-total, maxPayload), maxSegments-len(r.iov))
		if n == 0 {
			r.d.counters.malformed.Add(1)
			r.push(ch, 0) // room for a header alone
			continue
		}
		r.batch, r.caps, total = append(r.batch, ch), append(r.caps, uint32(n)), total+n
	}
	if len(r.batch) == 0 {
		r.park(c)
		return parked
	}
	n, err := readv(fd, r.iov)
	if n == 0 {
		r.spare = append(r.spare, r.batch...)
		switch err {
		case nil:
			return ended
		case unix.EAGAIN:
			return empty
		}
		return failed
	}
	r.hand(c, uint32(n))
	if uint64(n) == total {
		c.batch = min(2*c.batch, maxBatch)
	}
	return moved
}

// hand gives the guest n bytes of c that are in batch. What is left of batch becomes spare.
func (r *receiver) hand(c *conn, n uint32) {
	r.d.counters.toGuest.Add(uint64(n))
	h := c.sending(n)
	used := 0
	for ; n > 0; used++ {
		h.length = min(n, r.caps[used])
		n -= h.length
		var b [headerSize]byte
		h.put(&b)
		scatter(r.batch[used].Writable, b[:])
		r.push(r.batch[used], headerSize+h.length)
	}
	if used < len(r.batch) {
		c.batch = max(used, 1)
	}
	r.spare = append(r.spare, r.batch[used:]...)
}

// sendable is how many bytes may go to the guest now, and moved; or why none may.
func (c *conn) sendable() (uint32, step) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.live():
		return 0, stopped
	case c.guestDone&shutdownReceive != 0:
		return 0, ended
	}
	n := c.out.free()
	if n == 0 {
		if !c.starved { // once: the guest tells of room by itself, this is for one that forgot to
			c.starved = true
			c.owed |= oweAsk
		}
		return 0, parked
	}
	c.starved = false
	return n, moved
}

// sending accounts for n bytes under way to the guest and makes their header, but for the length.
func (c *conn) sending(n uint32) header {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.take(n)
	return c.header(opReadWrite)
}
