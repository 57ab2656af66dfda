package vsock

import (
	"context"
	"errors"

	"spore/virtio/queue"
)

// transmitBatch is after how many packets of a long row the driver gets its buffers back.
const transmitBatch = 32

// transmitter is the owner of the transmit queue, which carries the guest's packets. It never waits for a host's
// socket: what one does not take goes into its connection's buffer, whose size the guest was told.
type transmitter struct {
	d      *Device
	q      *queue.Queue
	used   func()
	pieces [][]byte // of one packet
	pushed int      // since the last look at the interrupt
}

// serve handles packets until ctx ends or the ring is broken.
func (t *transmitter) serve(ctx context.Context) error {
	defer t.show()
	for {
		if err := t.q.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for more := true; more && ctx.Err() == nil; more = t.q.EnableKicks() {
			t.q.DisableKicks()
			if err := t.drain(ctx); err != nil {
				return err
			}
		}
	}
}

// drain handles what is in the ring.
func (t *transmitter) drain(ctx context.Context) error {
	for {
		t.d.rx.await(ctx)
		if ctx.Err() != nil {
			return nil
		}
		ch, err := t.q.Pop()
		if err != nil && !errors.Is(err, queue.ErrChain) {
			return err
		}
		if ch == nil {
			t.show()
			return nil
		}
		if err != nil || !t.handle(ch) {
			t.d.counters.malformed.Add(1)
		}
		if err := t.q.Push(ch.Head, 0); err != nil {
			return err
		}
		if t.pushed++; t.pushed == transmitBatch {
			t.show()
		}
	}
}

// show raises the interrupt if the driver wants one.
func (t *transmitter) show() {
	if t.pushed > 0 && t.q.NeedsInterrupt() {
		t.used()
	}
	t.pushed = 0
}

// handle takes the packet in ch. It reports false for one that has no whole header.
func (t *transmitter) handle(ch *queue.Chain) bool {
	var b [headerSize]byte
	if gather(ch.Readable, b[:]) < headerSize {
		return false
	}
	h := parseHeader(&b)
	var n uint64
	t.pieces, n = split(ch.Readable, headerSize, t.pieces[:0], uint64(h.length), queue.LimitSize)
	t.d.dispatch(h, t.pieces, n)
	return true
}

// dispatch gives a packet of the guest's to its connection. payload holds at most h.length bytes, n of them.
func (d *Device) dispatch(h header, payload [][]byte, n uint64) {
	switch h.judge(d.cid, n) {
	case drop:
		d.counters.forged.Add(1)
		return
	case reset:
		d.counters.refused.Add(1)
		if c := d.table.find(key{guest: h.srcPort, host: h.dstPort}); c != nil && h.dstCID == HostCID && h.kind == typeStream {
			d.do(c, violate)
			return
		}
		d.rx.reply(h.refusal())
		return
	}
	k := key{guest: h.srcPort, host: h.dstPort}
	c := d.table.find(k)
	switch {
	case c != nil:
		d.do(c, c.fromGuest(h, payload))
	case h.op == opRequest:
		d.ask(k, h)
	case h.op != opReset:
		d.counters.unknown.Add(1)
		d.rx.reply(h.refusal())
	}
}
