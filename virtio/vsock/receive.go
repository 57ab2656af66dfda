package vsock

import (
	"context"
	"errors"
	"sync"

	"spore/virtio/queue"
)

const (
	// maxBatch bounds the receive buffers filled by one read of a host's socket.
	maxBatch = 32
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

// remove takes the one c out of list.
func remove(list []*conn, c *conn) []*conn {
	for i, o := range list {
		if o == c {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}
