package net

import (
	"context"
	"errors"
	"fmt"
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

// step is why the receiver stopped reading frames.
type step uint8

const (
	moved     step = iota // a frame: there may be more
	idle                  // nothing to read: it waits for the descriptor
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
	d   *Device
	a   virtio.Active
	q   *queue.Queue
	ctx context.Context // of one Run, which the receiver does not outlive

	mergeable bool
	want      uint64 // bytes of buffers to hold, headers included

	held   []buffer // in the order in which they were available
	first  int      // of held: those before were used
	room   uint64   // sum of the sizes
	vector [1 + 3*maxPieces + 1]unix.Iovec
	lo, hi int // the pieces of held in vector; the element before them is for the header, the one after for the overflow

	header header
	length uint64 // of a frame that is only partly in held, with its header; 0 is none
	rest   []byte // the other part

	unshown int // chains that the driver was not interrupted for
	last    step
	wait    time.Duration
	err     error // of the ring
}

// receive carries frames to the guest until ctx ends or the ring is broken.
func (d *Device) receive(ctx context.Context, a virtio.Active) error {
	r := &receiver{d: d, a: a, q: a.Queues[receiveQueue], ctx: ctx, mergeable: a.Features&featureMergeable != 0, lo: 1, hi: 1}
	if r.q == nil {
		return nil
	}
	if d.overflow == nil {
		d.overflow = make([]byte, maxFrame)
	}
	r.want = headerSize + frameRoom + uint64(max(d.mtu, plainMTU))
	if a.Features&(featureGuestTSO4|featureGuestTSO6) != 0 {
		r.want = headerSize + maxFrame
	}
	defer r.stop()
	r.q.DisableKicks()
	drain := r.drain // one closure for all calls
	for {
		if err := d.port.raw.Read(drain); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for the network: %w", err)
		}
		r.show()
		switch r.last {
		case ended:
			d.hangUp(a)
			<-ctx.Done()
			return nil
		case throttled:
			d.pause(ctx, r.wait)
		case starved:
			d.counters.starved.Add(1)
			r.err = r.awaitBuffers(ctx)
		case short:
			r.err = r.awaitMore(ctx)
		}
		if r.err != nil {
			return r.err
		}
	}
}

// stop gives the guest back what was not used. A frame that was waiting for room is lost.
func (r *receiver) stop() {
	r.giveUp()
	r.show()
	for i := len(r.held) - 1; i >= r.first; i-- {
		r.q.Return(r.held[i].chain)
	}
}

// awaitBuffers waits until the guest has made buffers available, or ctx ends.
func (r *receiver) awaitBuffers(ctx context.Context) error {
	defer r.q.DisableKicks()
	if r.q.EnableKicks() {
		return nil
	}
	if err := r.q.Await(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("wait for buffers of the guest: %w", err)
	}
	return nil
}

// awaitMore waits until the guest has made more buffers available for the frame that was read in part. Its driver may mean to do so
// as soon as it has emptied others, or never: after patience the frame is lost.
func (r *receiver) awaitMore(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := r.awaitBuffers(limited)
	if limited.Err() != nil {
		r.giveUp()
		return nil
	}
	return err
}

// giveUp drops the frame that was read in part.
func (r *receiver) giveUp() {
	if r.length > 0 {
		r.d.counters.oversized.Add(1)
		r.d.counters.in.dropped.Add(1)
		r.length, r.rest = 0, nil
	}
}

// drain reads frames until there are none, false, or there is something else to wait for, true.
func (r *receiver) drain(fd uintptr) bool {
	for r.ctx.Err() == nil {
		if r.last = r.receiveOne(fd); r.last == idle {
			r.show()
			return false
		} else if r.last != moved {
			return true
		}
		if r.unshown >= batch {
			r.show()
		}
	}
	r.last = stopping
	return true
}

// receiveOne moves one frame, or says why not.
func (r *receiver) receiveOne(fd uintptr) step {
	if !r.fill() {
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
	n, err := r.read(fd)
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
func (r *receiver) fill() bool {
	for r.room < r.want || len(r.rest) > 0 {
		if r.hi-r.lo >= maxPieces || !r.mergeable && r.first < len(r.held) || r.ctx.Err() != nil {
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
func (r *receiver) read(fd uintptr) (int, error) {
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
	n, err := readv(fd, r.vector[at-1:r.hi+1])
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
