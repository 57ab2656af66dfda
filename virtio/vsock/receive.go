package vsock

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"spore/virtio/queue"
)

const (
	// maxBatch bounds the receive buffers filled by one read of a host's socket.
	maxBatch = 32
	// maxSegments bounds the pieces they may be cut into, below the kernel's 1024 for one readv.
	maxSegments = 256
	// maxReplies is how many resets may wait for a receive buffer before packets of the guest wait too.
	maxReplies = 256
	// lostReplies is how many may wait at all.
	lostReplies = 2048
)

// receiver is the device's end of the receive queue, which carries packets to the guest. Whoever holds mu is the
// queue's owner: a pump fills guest memory straight from its socket, without another goroutine in between.
//
// When the guest has posted no buffers everybody sleeps: packets that are owed wait in control and replies, pumps wait
// in waiting and get their turns in that order, and the queue's kick is armed.
type receiver struct {
	d *Device

	mu      sync.Mutex
	done    <-chan struct{} // the end of the present Run
	q       *queue.Queue    // nil while there is none, or Run does not run
	used    func()
	fail    func(error)
	dirty   bool           // chains were pushed and no interrupt was considered yet
	held    bool           // nothing may be sent before the guest was told of the transport's reset
	spare   []*queue.Chain // popped and not used yet, at most maxBatch
	control []*conn        // owe packets, oldest first
	replies []header       // resets for what is no connection, oldest first
	waiting []*conn        // pumps, oldest first

	room  chan struct{}  // capacity 1: replies went below maxReplies
	iov   [][]byte       // of deliver
	batch []*queue.Chain // of deliver
	caps  []uint32       // of deliver: payload that fits in each of batch
}

func newReceiver(d *Device) *receiver { return &receiver{d: d, room: make(chan struct{}, 1)} }

// begin gives the receiver its queue for one Run. While held is set nothing is sent until release.
func (r *receiver) begin(ctx context.Context, q *queue.Queue, held bool, used func(), fail func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.q, r.held, r.used, r.fail = ctx.Done(), q, held, used, fail
}

// end gives all chains back. After it nothing of the receiver touches guest memory.
func (r *receiver) end() {
	r.mu.Lock()
	if r.q != nil {
		for _, ch := range r.spare {
			r.push(ch, 0)
		}
	}
	if r.dirty && r.q.NeedsInterrupt() {
		r.used()
	}
	r.q, r.dirty, r.spare = nil, false, r.spare[:0]
	r.mu.Unlock()
}

// serve takes the queue's kicks until ctx ends.
func (r *receiver) serve(ctx context.Context, q *queue.Queue) error {
	for {
		if err := q.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		r.kicked()
	}
}

// kicked goes on with what waits for buffers.
func (r *receiver) kicked() {
	r.mu.Lock()
	defer r.unlock()
	r.q.DisableKicks()
	r.proceed()
}

// running reports whether Run still runs. Called with mu held and q set.
func (r *receiver) running() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// unlock gives mu back, with an interrupt where the driver wants one.
func (r *receiver) unlock() {
	if r.dirty && r.q != nil {
		r.dirty = false
		if r.q.NeedsInterrupt() {
			r.used()
		}
	}
	r.mu.Unlock()
}

// proceed sends what is owed and gives the first pump that waits its turn. Called with mu held and q set.
func (r *receiver) proceed() {
	// Looking at the ring even when nothing is to be sent finds a broken one at the driver's kick.
	if len(r.spare) < maxBatch {
		if ch := r.pop(); ch != nil {
			r.spare = append(r.spare, ch)
		}
	}
	if r.flush() && len(r.spare) > 0 {
		r.next()
	}
}

// next gives the first pump that waits its turn. Called with mu held.
func (r *receiver) next() {
	if len(r.waiting) == 0 {
		return
	}
	c := r.waiting[0]
	r.waiting = remove(r.waiting, c)
	c.waiting, c.turn = false, true
	c.wake()
}

// chain takes a receive buffer that has room for a header. With none it arms the queue's kick and returns nil. Called
// with mu held and q set.
func (r *receiver) chain() *queue.Chain {
	if n := len(r.spare); n > 0 {
		ch := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return ch
	}
	return r.pop()
}

// pop is chain, but for the spare ones.
func (r *receiver) pop() *queue.Chain {
	for r.running() {
		ch, err := r.q.Pop()
		switch {
		case err != nil && !errors.Is(err, queue.ErrChain):
			r.fail(err)
			return nil
		case ch == nil:
			if !r.q.EnableKicks() {
				return nil
			}
		case err != nil || lengthOf(ch.Writable) < headerSize:
			r.d.counters.malformed.Add(1)
			r.push(ch, 0)
		default:
			return ch
		}
	}
	return nil
}

func (r *receiver) push(ch *queue.Chain, written uint32) {
	if err := r.q.Push(ch.Head, written); err != nil {
		r.fail(err)
	}
	r.dirty = true
}

// send puts a packet without payload into ch. Called with mu held.
func (r *receiver) send(ch *queue.Chain, h header) {
	var b [headerSize]byte
	h.put(&b)
	scatter(ch.Writable, b[:])
	r.push(ch, headerSize)
}

// flush sends what is owed. It reports false where there are too few receive buffers. Called with mu held.
func (r *receiver) flush() bool {
	if len(r.replies) == 0 && len(r.control) == 0 {
		return !r.held
	}
	if r.q == nil || r.held {
		return false
	}
	for len(r.replies) > 0 {
		ch := r.chain()
		if ch == nil {
			return false
		}
		r.send(ch, r.replies[0])
		r.replies = append(r.replies[:0], r.replies[1:]...)
		if len(r.replies) == maxReplies-1 {
			select {
			case r.room <- struct{}{}:
			default:
			}
		}
	}
	for len(r.control) > 0 {
		ch := r.chain()
		if ch == nil {
			return false
		}
		c := r.control[0]
		if h, ok := c.nextOwed(); ok {
			r.send(ch, h)
			continue
		}
		r.spare = append(r.spare, ch)
		c.queued = false
		r.control = append(r.control[:0], r.control[1:]...)
	}
	return true
}

// post sends what c owes as soon as there are buffers.
func (r *receiver) post(c *conn) {
	r.mu.Lock()
	defer r.unlock()
	r.queue(c)
	r.flush()
}

// queue puts c into control if it owes anything. Called with mu held.
func (r *receiver) queue(c *conn) {
	if !c.queued && c.owes() {
		c.queued = true
		r.control = append(r.control, c)
	}
}

// reply sends a reset as soon as there are buffers.
func (r *receiver) reply(h header) {
	r.mu.Lock()
	defer r.unlock()
	if len(r.replies) >= lostReplies {
		r.d.counters.lost.Add(1)
		return
	}
	r.replies = append(r.replies, h)
	r.flush()
}

// await waits while too many resets wait for receive buffers: a guest that makes them has to make room for them.
func (r *receiver) await(ctx context.Context) {
	for {
		r.mu.Lock()
		full := len(r.replies) >= maxReplies
		r.mu.Unlock()
		if !full {
			return
		}
		select {
		case <-r.room:
		case <-ctx.Done():
			return
		}
	}
}

// forget takes c off every list; with what it owes where all is set, which is at its end.
func (r *receiver) forget(c *conn, all bool) {
	r.mu.Lock()
	defer r.unlock()
	if all && c.queued {
		c.queued = false
		r.control = remove(r.control, c)
	}
	if c.waiting {
		c.waiting = false
		r.waiting = remove(r.waiting, c)
	}
	if c.turn {
		c.turn = false
		r.next()
	}
}

// clear drops what waits for buffers: the device was reset. Called while Run does not run.
func (r *receiver) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replies = nil
}

// release lets packets go to the guest.
func (r *receiver) release() {
	r.mu.Lock()
	defer r.unlock()
	r.held = false
	if r.q != nil {
		r.proceed()
	}
}

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
	case c.state != open:
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

// remove takes the one c out of list.
func remove(list []*conn, c *conn) []*conn {
	for i, o := range list {
		if o == c {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}
