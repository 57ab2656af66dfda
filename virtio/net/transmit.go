package net

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"spore/virtio"
	"spore/virtio/queue"
)

// After so many frames, or bytes, of a long row the driver sees what was done with them, and is interrupted if it asked for that. TCP in
// the guest keeps no more than two large segments on their way.
const (
	batch      = 16
	batchBytes = 32 << 10
)

// transmitter is the owner of the transmit queue.
type transmitter struct {
	d *Device
	a virtio.Active
	q *queue.Queue

	header  header
	vector  [1 + queueSize]unix.Iovec
	pending *queue.Chain // judged, and in vector; the descriptor has not taken it yet
	pieces  int          // of pending, in vector
	staged  int          // chains that the driver has not seen yet
	bytes   uint64       // of those
	wait    time.Duration
	err     error // of the ring
}

// begin prepares for a Run.
func (t *transmitter) begin(d *Device, a virtio.Active) {
	*t = transmitter{d: d, a: a, q: a.Queues[transmitQueue]}
}

// stop leaves the ring so that the next Run goes on where this one ends.
func (t *transmitter) stop() {
	if t.q == nil {
		return
	}
	t.show()
	if t.pending != nil {
		t.q.Return(t.pending)
	}
}

// serve sends frames of the ring until there are none (idle, and the driver kicks for the next), or there is something else to wait for,
// or it is the other direction's turn (moved).
func (t *transmitter) serve(ctx context.Context) step {
	defer t.show()
	t.q.DisableKicks()
	for range budget {
		if ctx.Err() != nil {
			return stopping
		}
		if t.pending == nil {
			if why := t.next(); why == idle && !t.q.EnableKicks() {
				return idle
			} else if why != moved {
				if why == idle {
					t.q.DisableKicks()
					continue
				}
				return why
			}
		}
		if t.pending != nil && !t.send() {
			t.d.counters.waited.Add(1)
			return blocked
		}
	}
	return moved
}

// next takes the next frame off the ring, or says why not. One that is not to be sent is given back at once.
func (t *transmitter) next() step {
	if l := t.d.out; l != nil {
		if t.wait = l.Delay(); t.wait > 0 {
			t.d.counters.out.throttled.Add(1)
			return throttled
		}
	}
	c, err := t.q.Pop()
	switch {
	case c == nil && err == nil:
		return idle
	case c == nil || err != nil && !errors.Is(err, queue.ErrChain):
		t.err = err
		return stopping
	case err != nil || len(c.Writable) > 0 || c.ReadableLen() < headerSize:
		t.d.counters.malformed.Add(1)
		return t.done(c)
	}
	n := c.ReadableLen() - headerSize
	c.Read(t.header[:]) // once: what is judged is what is sent
	if l := t.d.out; l != nil {
		l.Take(n)
	}
	v := t.header.fromGuest(n, t.a.Features, t.d.mtu)
	if v == pass && !t.d.down.Load() {
		t.pending = c
		t.gather(c)
		return moved
	}
	switch v {
	case badFrame:
		t.d.counters.oversized.Add(1)
	case badOffload:
		t.d.counters.offload.Add(1)
	}
	t.d.counters.out.dropped.Add(1)
	return t.done(c)
}

// gather puts the judged header and the frame of c into the vector.
func (t *transmitter) gather(c *queue.Chain) {
	t.vector[0] = iovec(t.header[:])
	t.pieces = 1
	skip := headerSize
	for _, b := range c.Readable {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		t.vector[t.pieces] = iovec(b[skip:])
		t.pieces++
		skip = 0
	}
}

// send writes the pending frame. It returns false when the descriptor does not take it now.
func (t *transmitter) send() bool {
	n, err := t.d.port.writev(t.vector[:t.pieces])
	if err == unix.EAGAIN {
		return false
	}
	c := t.pending
	t.pending = nil
	out := &t.d.counters.out
	if size := c.ReadableLen(); err != nil || uint64(n) != size {
		t.d.counters.failed.Add(1)
		out.dropped.Add(1)
	} else {
		out.frames.Add(1)
		out.bytes.Add(size - headerSize)
	}
	t.done(c)
	return true
}

// done gives a chain back.
func (t *transmitter) done(c *queue.Chain) step {
	t.bytes += c.ReadableLen()
	if t.err = t.q.Stage(c.Head, 0); t.err != nil {
		return stopping
	}
	if t.staged++; t.staged >= batch || t.bytes >= batchBytes {
		t.show()
	}
	return moved
}

// show lets the driver see what was done with its frames.
func (t *transmitter) show() {
	if t.staged == 0 {
		return
	}
	t.staged, t.bytes = 0, 0
	t.q.Publish()
	if t.q.NeedsInterrupt() {
		t.a.Used(transmitQueue)
	}
}
