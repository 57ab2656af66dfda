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

// After so many frames, or bytes, of a long row the driver sees what was done with them, and is interrupted if it asked for that. TCP in
// the guest keeps no more than two large segments on their way.
const (
	batch      = 16
	batchBytes = 32 << 10
)

// transmitter is the owner of the transmit queue.
type transmitter struct {
	d   *Device
	a   virtio.Active
	q   *queue.Queue
	ctx context.Context // of one Run, which the transmitter does not outlive

	header  header
	vector  [1 + queueSize]unix.Iovec
	pending *queue.Chain // judged, and in vector; the descriptor has not taken it yet
	pieces  int          // of pending, in vector
	staged  int          // chains that the driver has not seen yet
	bytes   uint64       // of those
	wait    time.Duration
	err     error // of the ring
}

// transmit carries the guest's frames until ctx ends or the ring is broken.
func (d *Device) transmit(ctx context.Context, a virtio.Active) error {
	t := &transmitter{d: d, a: a, q: a.Queues[transmitQueue], ctx: ctx}
	if t.q == nil {
		return nil
	}
	defer t.stop()
	drain := t.drain // one closure for all calls
	for {
		if err := t.q.Await(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for frames of the guest: %w", err)
		}
		for more := true; more && ctx.Err() == nil; {
			t.q.DisableKicks()
			if err := d.port.raw.Write(drain); err != nil && ctx.Err() == nil {
				return fmt.Errorf("wait for the network: %w", err)
			}
			if t.err != nil {
				return t.err
			}
			if t.wait > 0 && !d.pause(ctx, t.wait) {
				return nil
			}
			more = t.wait > 0 || t.pending != nil || t.q.EnableKicks()
		}
	}
}

// stop leaves the ring so that the next Run goes on where this one ends.
func (t *transmitter) stop() {
	t.show()
	if t.pending != nil {
		t.q.Return(t.pending)
	}
}

// pause waits for the rate limit. It returns false when ctx ends first.
func (d *Device) pause(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-d.clock.After(wait):
		return true
	}
}

// drain sends what is in the ring. It returns false when the descriptor takes nothing now, and is called again when it does.
func (t *transmitter) drain(fd uintptr) bool {
	t.wait = 0
	for t.ctx.Err() == nil {
		if t.pending == nil && !t.next() {
			t.show()
			return true
		}
		if t.pending == nil {
			continue
		}
		if !t.send(fd) {
			t.show()
			t.d.counters.waited.Add(1)
			return false
		}
	}
	return true
}

// next takes the next frame off the ring. It returns false if there is none, or none may be taken now. A frame that is not to be
// sent is given back at once.
func (t *transmitter) next() bool {
	if l := t.d.out; l != nil {
		if t.wait = l.Delay(); t.wait > 0 {
			t.d.counters.out.throttled.Add(1)
			return false
		}
	}
	c, err := t.q.Pop()
	switch {
	case c == nil:
		t.err = err
		return false
	case err != nil && !errors.Is(err, queue.ErrChain):
		t.err = err
		return false
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
		return true
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
func (t *transmitter) send(fd uintptr) bool {
	n, err := writev(fd, t.vector[:t.pieces])
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

// done gives a chain back. It returns whether the ring took it.
func (t *transmitter) done(c *queue.Chain) bool {
	t.bytes += c.ReadableLen()
	if t.err = t.q.Stage(c.Head, 0); t.err != nil {
		return false
	}
	if t.staged++; t.staged >= batch || t.bytes >= batchBytes {
		t.show()
	}
	return true
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
