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

// tellReset puts the event into the event queue and then lets packets go to the guest. Without a buffer it waits: a
// guest that posts none gets no packets, for it would take them to be of connections that are no more.
func (d *Device) tellReset(ctx context.Context, q *queue.Queue, used func()) error {
	for {
		if err := q.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for more := true; more && ctx.Err() == nil; more = q.EnableKicks() {
			told, err := d.putReset(ctx, q, used)
			if err != nil {
				return err
			}
			if told {
				d.mu.Lock()
				d.event = false
				d.mu.Unlock()
				d.rx.release()
				return nil
			}
		}
	}
}

// putReset reports whether there was a buffer for the event.
func (d *Device) putReset(ctx context.Context, q *queue.Queue, used func()) (told bool, err error) {
	defer func() {
		if q.NeedsInterrupt() {
			used()
		}
	}()
	for !told && ctx.Err() == nil {
		ch, err := q.Pop()
		if err != nil && !errors.Is(err, queue.ErrChain) {
			return false, err
		}
		if ch == nil {
			return false, nil
		}
		n := uint32(0)
		if err == nil && lengthOf(ch.Writable) >= eventSize {
			var b [eventSize]byte
			binary.LittleEndian.PutUint32(b[:], eventReset)
			scatter(ch.Writable, b[:])
			told, n = true, eventSize
		} else {
			d.counters.malformed.Add(1)
		}
		if err := q.Push(ch.Head, n); err != nil {
			return false, err
		}
	}
	return told, nil
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
