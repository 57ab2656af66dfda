package net

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"spore/virtio"
	"spore/virtio/queue"
)

const (
	// maxPieces is from how many pieces of guest memory on no more buffers are gathered. The last may add a ring's size.
	maxPieces = 256
	// patience is how long a frame that is larger than what the guest has room for waits for more.
	patience = 100 * time.Millisecond
)

// step is what became of an attempt to move a frame.
type step uint8

const (
	moved     step = iota // a frame: there may be more
	idle                  // there is none
	blocked               // the descriptor takes none now
	starved               // no buffer of the guest's
	short                 // not enough for the frame that was read
	throttled             // by the rate limit
	ended                 // the other side has gone
	stopping              // the device stops, or the ring is broken
)

// buffer is a chain that frames are read into.
type buffer struct {
	chain  *queue.Chain
	size   uint64
	pieces int
}

// receiver is the owner of the receive queue. It holds as many of the guest's buffers as the largest frame needs, so that a frame
// is read with one call and straight into them; what is larger, because the guest has no more, ends in Device.overflow.
type receiver struct {
	d *Device
	a virtio.Active
	q *queue.Queue

	mergeable bool
	want      uint64 // bytes of buffers to hold, headers included

	held   []buffer // in the order in which they were available
	first  int      // of held: those before were used
	room   uint64   // sum of the sizes
	vector [1 + 3*maxPieces + 1]unix.Iovec
	lo, hi int // the pieces of held in vector; the element before them is for the header, the one after for the overflow

	header  header
	length  uint64 // of a frame that is only partly in held, with its header; 0 is none
	rest    []byte // the other part
	partial int64  // how many such frames there were

	unshown int // chains that the driver was not interrupted for
	wait    time.Duration
	err     error // of the ring
}

// begin prepares for a Run.
func (r *receiver) begin(d *Device, a virtio.Active) {
	*r = receiver{d: d, a: a, q: a.Queues[receiveQueue], mergeable: a.Features&featureMergeable != 0, lo: 1, hi: 1}
	if r.q == nil {
		return
	}
	r.want = headerSize + frameRoom + uint64(max(d.mtu, plainMTU))
	if a.Features&(featureGuestTSO4|featureGuestTSO6) != 0 {
		r.want = headerSize + maxFrame
	}
	r.q.DisableKicks()
}

// stop gives the guest back what was not used. A frame that was waiting for room is lost.
func (r *receiver) stop() {
	if r.q == nil {
		return
	}
	r.giveUp()
	r.show()
	for i := len(r.held) - 1; i >= r.first; i-- {
		r.q.Return(r.held[i].chain)
	}
}

// giveUp drops the frame that was read in part.
func (r *receiver) giveUp() {
	if r.length > 0 {
		r.d.counters.oversized.Add(1)
		r.d.counters.in.dropped.Add(1)
		r.length, r.rest = 0, nil
	}
}

// serve reads frames until there are none, or there is something else to wait for, or it is the other direction's turn (moved).
func (r *receiver) serve(ctx context.Context) step {
	defer r.show()
	for range budget {
		if ctx.Err() != nil {
			return stopping
		}
		if why := r.receiveOne(ctx); why != moved {
			return why
		}
		if r.unshown >= batch {
			r.show()
		}
	}
	return moved
}

// receiveOne moves one frame, or says why not.
func (r *receiver) receiveOne(ctx context.Context) step {
	if !r.fill(ctx) {
		return stopping
	}
	if r.length > 0 {
		return r.complete()
	}
	if r.first == len(r.held) {
		return starved
	}
	if l := r.d.in; l != nil {
		if r.wait = l.Delay(); r.wait > 0 {
			r.d.counters.in.throttled.Add(1)
			return throttled
		}
	}
	n, err := r.read()
	switch {
	case n == 0 && err == nil || closed(err):
		return ended
	case err != nil: // EAGAIN, or something that may pass: the poller says when it is worth another look
		return idle
	}
	if l := r.d.in; l != nil {
		l.Take(uint64(max(0, n-headerSize)))
	}
	return r.judge(uint64(n))
}

// judge decides about a frame that was read, of n bytes with its header.
func (r *receiver) judge(n uint64) step {
	in := &r.d.counters.in
	switch {
	case n < headerSize+minFrame:
		in.dropped.Add(1)
	case !r.header.toGuest(r.a.Features):
		r.d.counters.offload.Add(1)
		in.dropped.Add(1)
	case n <= r.room:
		return r.deliver(n)
	case !r.mergeable:
		r.d.counters.oversized.Add(1)
		in.dropped.Add(1)
	default:
		r.length, r.rest = n, r.d.overflow[:n-r.room]
		r.partial++
	}
	return moved
}

// complete goes on with a frame that was read in part.
func (r *receiver) complete() step {
	if len(r.rest) == 0 {
		n := r.length
		r.length = 0
		return r.deliver(n)
	}
	if pieces := r.hi - r.lo; pieces >= int(r.q.Size()) || pieces >= maxPieces { // all that the guest can ever make available
		r.giveUp()
		return moved
	}
	return short
}

// fill holds buffers until there are enough. It returns false if the ring is broken.
func (r *receiver) fill(ctx context.Context) bool {
	for r.room < r.want || len(r.rest) > 0 {
		if r.hi-r.lo >= maxPieces || !r.mergeable && r.first < len(r.held) || ctx.Err() != nil {
			break
		}
		c, err := r.q.Pop()
		if c == nil {
			r.err = err
			return err == nil
		}
		if err != nil && !errors.Is(err, queue.ErrChain) {
			r.err = err
			return false
		}
		if err == nil && c.WritableLen() >= headerSize {
			r.hold(c)
			continue
		}
		if r.first < len(r.held) { // its turn comes when those before it are used
			r.q.Return(c)
			r.giveUp() // nothing comes after it
			break
		}
		r.d.counters.malformed.Add(1)
		if r.err = r.q.Push(c.Head, 0); r.err != nil {
			return false
		}
		r.unshown++
	}
	return true
}

// hold adds a chain to the buffers.
func (r *receiver) hold(c *queue.Chain) {
	if r.first == len(r.held) {
		r.held, r.first = r.held[:0], 0
	} else if len(r.held) == cap(r.held) && r.first > 0 {
		r.held = r.held[:copy(r.held, r.held[r.first:])]
		r.first = 0
	}
	if r.hi+len(c.Writable) >= len(r.vector) {
		r.hi = 1 + copy(r.vector[1:], r.vector[r.lo:r.hi])
		r.lo = 1
	}
	for _, b := range c.Writable {
		r.vector[r.hi] = iovec(b)
		r.hi++
		if len(r.rest) > 0 {
			r.rest = r.rest[copy(b, r.rest):]
		}
	}
	r.held = append(r.held, buffer{c, c.WritableLen(), len(c.Writable)})
	r.room += c.WritableLen()
}

// read reads one frame: its header into r.header, itself into the buffers from where the header's place in them ends, and what does not
// fit into the overflow. It returns the length of all.
func (r *receiver) read() (int, error) {
	at, skip := r.lo, uint64(headerSize)
	for at < r.hi && r.vector[at].Len <= skip {
		skip -= r.vector[at].Len
		at++
	}
	before, here := r.vector[at-1], r.vector[at]
	r.vector[at-1], r.vector[r.hi] = iovec(r.header[:]), iovec(r.d.overflow)
	if skip > 0 {
		cut(&r.vector[at], skip)
	}
	n, err := r.d.port.readv(r.vector[at-1 : r.hi+1])
	r.vector[at-1], r.vector[at] = before, here
	return n, err
}

// deliver gives the guest a frame of n bytes, its header included, that is in the buffers.
func (r *receiver) deliver(n uint64) step {
	count, room := 0, uint64(0)
	for room < n {
		room += r.held[r.first+count].size
		count++
	}
	r.header.setBuffers(uint16(count))
	r.held[r.first].chain.Write(r.header[:])
	for left := n; left > 0; {
		b := r.held[r.first]
		used := min(left, b.size)
		if r.err = r.q.Stage(b.chain.Head, uint32(used)); r.err != nil {
			return stopping
		}
		r.first, r.lo, r.room, left = r.first+1, r.lo+b.pieces, r.room-b.size, left-used
	}
	r.q.Publish() // all at once: the driver takes a frame only whole (virtio 1.2 §5.1.6.4)
	r.unshown += count
	r.d.counters.in.frames.Add(1)
	r.d.counters.in.bytes.Add(n - headerSize)
	return moved
}

// show interrupts the driver if it asked for that.
func (r *receiver) show() {
	if r.unshown > 0 && r.q.NeedsInterrupt() {
		r.a.Used(receiveQueue)
	}
	r.unshown = 0
}
