// Package rng is the entropy device (virtio 1.2 §5.4): one queue of buffers to fill.
package rng

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"spore/virtio"
	"spore/virtio/queue"
)

// maxRequest bounds what one request gets, in bytes. Overlapping descriptors can make a request longer than all
// of guest memory; the driver asks again for more (RNG-01, virtio 1.2 §5.4.6.1).
const maxRequest = 64 << 10

// Device is an entropy device. Make one with New.
type Device struct {
	source io.Reader
	buffer [4 << 10]byte // one piece on its way into the guest

	requests, bytes, malformed atomic.Uint64
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that answers from source, which must be good enough for keys.
func New(source io.Reader) *Device { return &Device{source: source} }

// Type is virtio.TypeRNG.
func (d *Device) Type() virtio.Type { return virtio.TypeRNG }

// Features are none.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes is one queue of requests.
func (d *Device) QueueSizes() []uint16 { return []uint16{queue.MaxSize} }

// ReadConfig reads zeros: the device has no configuration space.
func (d *Device) ReadConfig(p []byte, _ uint32) { clear(p) }

// WriteConfig ignores the write.
func (d *Device) WriteConfig([]byte, uint32) {}

// Run fills buffers until ctx ends.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	q := a.Queues[0]
	if q == nil {
		<-ctx.Done()
		return nil
	}
	for {
		if err := q.Wait(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for requests: %w", err)
		}
		for more := true; more && ctx.Err() == nil; more = q.EnableKicks() {
			q.DisableKicks()
			if err := d.serve(ctx, q); err != nil {
				return err
			}
			if q.NeedsInterrupt() {
				a.Used(0)
			}
		}
	}
}

// serve answers all that is available.
func (d *Device) serve(ctx context.Context, q *queue.Queue) error {
	for ctx.Err() == nil {
		c, err := q.Pop()
		if c == nil {
			return err
		}
		var n uint32
		var broken error // the source's fault
		if err != nil {
			d.malformed.Add(1)
		} else {
			n, broken = d.fill(c)
		}
		if err := q.Push(c.Head, n); err != nil {
			return err
		}
		if broken != nil {
			return broken
		}
	}
	return nil
}

// fill writes random bytes to the chain's writable buffers and returns how many. After an error it is none: the
// driver must not take what is there for random.
func (d *Device) fill(c *queue.Chain) (uint32, error) {
	want := min(c.WritableLen(), maxRequest)
	d.requests.Add(1)
	var done uint64
	for done < want {
		piece := d.buffer[:min(want-done, uint64(len(d.buffer)))]
		if _, err := io.ReadFull(d.source, piece); err != nil {
			return 0, fmt.Errorf("read entropy: %w", err)
		}
		done += uint64(c.Write(piece))
	}
	clear(d.buffer[:])
	d.bytes.Add(done)
	return uint32(done), nil
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	return map[string]uint64{"requests": d.requests.Load(), "bytes": d.bytes.Load(), "malformed": d.malformed.Load()}
}

// SaveState returns nothing: between requests the device has no state.
func (d *Device) SaveState() (json.RawMessage, error) { return json.RawMessage("{}"), nil }

// LoadState accepts what SaveState returned.
func (d *Device) LoadState(s json.RawMessage) error {
	if string(s) != "{}" {
		return fmt.Errorf("load entropy device: unexpected state of %d bytes", len(s))
	}
	return nil
}
