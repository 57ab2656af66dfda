package vsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"spore/virtio/queue"
)

// eventReset is VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, and eventSize struct virtio_vsock_event, virtio 1.2 §5.10.6.7.
const (
	eventReset = 0
	eventSize  = 4
)

// teller tells a restored guest that the transport was reset.
type teller struct {
	d    *Device
	q    *queue.Queue
	used func()
	held []*queue.Chain // popped and not pushed
}

// serve puts the event into the event queue and then lets packets go to the guest. Without a buffer it waits: a guest
// that posts none gets no packets, for it would take them to be of connections that are no more.
func (e *teller) serve(ctx context.Context) error {
	defer e.giveBack()
	for len(e.held) == 0 {
		if !e.q.EnableKicks() {
			if err := e.q.Wait(ctx); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return err
			}
		}
		if err := e.collect(ctx); err != nil {
			return err
		}
	}
	e.put()
	e.d.mu.Lock()
	e.d.event = false
	e.d.mu.Unlock()
	if err := e.settle(ctx); err != nil {
		return err
	}
	e.d.rx.release()
	return nil
}

// collect takes all buffers there are. Those too small are given back at once.
func (e *teller) collect(ctx context.Context) error {
	for ctx.Err() == nil {
		ch, err := e.q.Pop()
		switch {
		case err != nil && !errors.Is(err, queue.ErrChain):
			return err
		case ch == nil:
			return nil
		case err == nil && ch.WritableLen() >= eventSize:
			e.held = append(e.held, ch)
			continue
		}
		e.d.counters.malformed.Add(1)
		if err := e.push(ch, 0); err != nil {
			return err
		}
	}
	return nil
}

func (e *teller) push(ch *queue.Chain, n uint32) error {
	err := e.q.Push(ch.Head, n)
	if e.q.NeedsInterrupt() {
		e.used()
	}
	return err
}

// put writes the event into the first of the buffers.
func (e *teller) put() {
	var b [eventSize]byte
	binary.LittleEndian.PutUint32(b[:], eventReset)
	ch := e.held[0]
	e.held = e.held[1:]
	ch.Write(b[:])
	e.push(ch, eventSize)
}

// settle waits until the driver has handled the event: it then posts the buffer again, which is seen because the others
// are held. A driver that looks at its receive queue first would else reset connections made after the event. One that
// does not post the buffer costs half the time limit for a connection, once.
func (e *teller) settle(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, e.d.timeout/2)
	defer cancel()
	for !e.q.EnableKicks() {
		if err := e.q.Wait(limited); limited.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// giveBack pushes what is held.
func (e *teller) giveBack() {
	for _, ch := range e.held {
		e.push(ch, 0)
	}
	e.held = nil
}

// decode parses exactly one JSON value of known fields.
func decode(raw json.RawMessage, into any) error {
	const maxState = 4 << 10
	if len(raw) > maxState {
		return fmt.Errorf("%d bytes, at most %d", len(raw), maxState)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}
