// Package console is the console device (virtio 1.2 §5.3) with one port, hvc0 in the guest: bytes out to a
// writer that may not be waited for, bytes in from a reader.
package console

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"spore/virtio"
	"spore/virtio/queue"
)

const featureSize = 1 << 0 // VIRTIO_CONSOLE_F_SIZE: the configuration space has columns and rows

// Queues of the only port.
const (
	queueReceive  = 0 // to the guest
	queueTransmit = 1 // from the guest
)

// Bounds on what a guest can make the host take (CON-01).
const (
	maxRequest    = 16 << 10  // bytes of one transmitted chain that are looked at; the rest is dropped
	outputRate    = 1 << 20   // bytes a second that reach the writer, the rest is dropped
	outputBurst   = 256 << 10 // bytes that may come at once
	inputBuffered = 4 << 10   // bytes of input that wait for the guest
)

// Config is what a console needs.
type Config struct {
	Output  io.Writer        // gets the guest's bytes; a write that would block must fail instead; nil discards
	Input   io.Reader        // bytes for the guest; nil is none. Read until its end, by a goroutine that ends with it
	Columns uint16           // 0 with Rows 0: the guest is told no size
	Rows    uint16           //
	Now     func() time.Time // for the rate; nil is time.Now
}

// Device is a console. Make one with New.
type Device struct {
	cfg    Config
	bucket bucket
	buffer [4 << 10]byte

	reading sync.Once
	input   chan []byte // pieces read from Input, one at a time
	pending []byte      // of the piece the guest is getting

	received, transmitted, dropped, malformed atomic.Uint64
}

var _ virtio.Device = (*Device)(nil)

// New makes a console.
func New(cfg Config) *Device {
	if cfg.Output == nil {
		cfg.Output = io.Discard
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Device{cfg: cfg, bucket: newBucket(outputRate, outputBurst, cfg.Now()), input: make(chan []byte)}
}

// Type is virtio.TypeConsole.
func (d *Device) Type() virtio.Type { return virtio.TypeConsole }

// Features offers the size if there is one.
func (d *Device) Features() uint64 {
	if d.cfg.Columns == 0 && d.cfg.Rows == 0 {
		return 0
	}
	return featureSize
}

// QueueSizes is a queue in each direction.
func (d *Device) QueueSizes() []uint16 { return []uint16{64, 64} }

// ReadConfig reads struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
func (d *Device) ReadConfig(p []byte, off uint32) {
	var space [12]byte
	binary.LittleEndian.PutUint16(space[0:], d.cfg.Columns)
	binary.LittleEndian.PutUint16(space[2:], d.cfg.Rows)
	binary.LittleEndian.PutUint32(space[4:], 1)
	clear(p)
	if off < uint32(len(space)) {
		copy(p, space[off:])
	}
}

// WriteConfig ignores the write: emergency output is not offered.
func (d *Device) WriteConfig([]byte, uint32) {}

// Run serves both directions until ctx ends.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var both sync.WaitGroup
	errs := make([]error, 2)
	for i, serve := range []func(context.Context, virtio.Active) error{d.transmit, d.receive} {
		both.Go(func() {
			if errs[i] = virtio.Contain(func() error { return serve(ctx, a) }); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	both.Wait()
	if errs[0] != nil {
		return errs[0]
	}
	return errs[1]
}

// transmit takes the guest's output.
func (d *Device) transmit(ctx context.Context, a virtio.Active) error {
	q := a.Queues[queueTransmit]
	if q == nil {
		return nil
	}
	for {
		if err := q.Wait(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("wait for output: %w", err)
		}
		for more := true; more && ctx.Err() == nil; more = q.EnableKicks() {
			for ctx.Err() == nil {
				c, err := q.Pop()
				if c == nil && err == nil {
					break
				}
				if c == nil {
					return err
				}
				if err != nil {
					d.malformed.Add(1)
				} else {
					d.write(c)
				}
				if err := q.Push(c.Head, 0); err != nil {
					return err
				}
			}
			if q.NeedsInterrupt() {
				a.Used(queueTransmit)
			}
		}
	}
}

// write passes on what the rate allows and drops the rest: a guest cannot make the host wait or fill up.
func (d *Device) write(c *queue.Chain) {
	left := c.ReadableLen()
	for look := maxRequest; look > 0 && left > 0; {
		n := c.Read(d.buffer[:min(look, len(d.buffer))])
		look, left = look-n, left-uint64(n)
		allowed := d.bucket.take(d.cfg.Now(), n)
		if allowed == 0 {
			d.dropped.Add(uint64(n))
			continue
		}
		sent, _ := d.cfg.Output.Write(d.buffer[:allowed]) // a writer that cannot take it now has lost it
		sent = min(max(sent, 0), allowed)
		d.transmitted.Add(uint64(sent))
		d.dropped.Add(uint64(n - sent))
	}
	d.dropped.Add(left)
}

// receive gives input to the guest. Input that the guest has no buffer for waits, at most inputBuffered bytes
// of it, and the reader with it.
func (d *Device) receive(ctx context.Context, a virtio.Active) error {
	q := a.Queues[queueReceive]
	if q == nil || d.cfg.Input == nil {
		return nil
	}
	d.reading.Do(func() { go d.read() })
	for {
		if len(d.pending) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case piece, ok := <-d.input:
				if !ok {
					<-ctx.Done()
					return nil
				}
				d.pending = piece
			}
		}
		c, err := q.Pop()
		if c == nil && err != nil {
			return err
		}
		if c == nil {
			if q.EnableKicks() {
				continue
			}
			if err := q.Wait(ctx); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return fmt.Errorf("wait for room for input: %w", err)
			}
			continue
		}
		var n int
		if err != nil {
			d.malformed.Add(1)
		} else {
			n = c.Write(d.pending)
			d.pending = d.pending[n:]
			d.received.Add(uint64(n))
		}
		if err := q.Push(c.Head, uint32(n)); err != nil {
			return err
		}
		if q.NeedsInterrupt() {
			a.Used(queueReceive)
		}
	}
}

// read feeds input piece by piece until the reader ends.
func (d *Device) read() {
	defer close(d.input)
	for {
		piece := make([]byte, inputBuffered)
		n, err := d.cfg.Input.Read(piece)
		if n > 0 {
			d.input <- piece[:n]
		}
		if err != nil {
			return
		}
	}
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	return map[string]uint64{
		"received_bytes": d.received.Load(), "transmitted_bytes": d.transmitted.Load(), "dropped_bytes": d.dropped.Load(), "malformed": d.malformed.Load(),
	}
}

// state is what a snapshot keeps: input that the guest has not taken.
type state struct {
	Pending []byte `json:"pending,omitempty"`
}

// SaveState returns the input on its way.
func (d *Device) SaveState() (json.RawMessage, error) { return json.Marshal(state{d.pending}) }

// LoadState takes what SaveState returned.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("load console: %w", err)
	}
	if len(s.Pending) > inputBuffered {
		return fmt.Errorf("load console: %d bytes of input, at most %d", len(s.Pending), inputBuffered)
	}
	d.pending = s.Pending
	return nil
}
