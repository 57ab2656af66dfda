// Package pmem is the virtio persistent memory device (virtio 1.2 §5.19) over a read-only file that the VMM has
// mapped into guest physical memory: the guest reads the file's pages in place (DAX), shared with every other guest.
// The mapping and its memory slot are the VMM's; this device only tells the guest where they are and answers flushes.
package pmem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

const (
	queueSize  = 64
	configSize = 16 // struct virtio_pmem_config, virtio 1.2 §5.19.4
	// Alignment is what Start and Size must be multiples of: what Linux wants of a DAX range.
	Alignment = 2 << 20
)

// Config says where the file is mapped.
type Config struct {
	Start guestmem.GPA // a multiple of Alignment, outside RAM
	Size  uint64       // bytes; a multiple of Alignment, more than 0
}

// Device is a virtio-pmem device. It implements virtio.Device.
type Device struct {
	cfg      Config
	config   [configSize]byte
	counters counters
}

// New makes a Device.
func New(cfg Config) (*Device, error) {
	if cfg.Size == 0 || cfg.Size%Alignment != 0 || uint64(cfg.Start)%Alignment != 0 {
		return nil, fmt.Errorf("make pmem device: range %#x+%#x is not aligned to %#x", uint64(cfg.Start), cfg.Size, Alignment)
	}
	if uint64(cfg.Start)+cfg.Size < uint64(cfg.Start) {
		return nil, fmt.Errorf("make pmem device: range %#x+%#x overflows", uint64(cfg.Start), cfg.Size)
	}
	d := &Device{cfg: cfg}
	binary.LittleEndian.PutUint64(d.config[0:], uint64(cfg.Start))
	binary.LittleEndian.PutUint64(d.config[8:], cfg.Size)
	return d, nil
}

// Type is virtio.TypePmem.
func (d *Device) Type() virtio.Type { return virtio.TypePmem }

// Features are none.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes is the one request queue.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads struct virtio_pmem_config.
func (d *Device) ReadConfig(p []byte, off uint32) {
	clear(p)
	if off < configSize {
		copy(p, d.config[off:])
	}
}

// WriteConfig does nothing: no field is writable.
func (d *Device) WriteConfig([]byte, uint32) {}

// Run answers flush requests until ctx ends or the driver breaks the ring.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	if len(a.Queues) == 0 || a.Queues[0] == nil {
		<-ctx.Done()
		return nil
	}
	q := a.Queues[0]
	for {
		if err := q.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		more := true
		for more && ctx.Err() == nil {
			q.DisableKicks()
			if err := d.drain(ctx, q); err != nil {
				return err
			}
			if q.NeedsInterrupt() {
				a.Used(0)
			}
			more = q.EnableKicks()
		}
	}
}

// drain answers what is in the ring.
func (d *Device) drain(ctx context.Context, q *queue.Queue) error {
	for ctx.Err() == nil {
		c, err := q.Pop()
		switch {
		case err != nil && !errors.Is(err, queue.ErrChain):
			return err
		case c == nil:
			return nil
		}
		written, ok := uint32(0), false
		if err == nil {
			written, ok = handle(c.Readable, c.Writable)
		}
		if ok {
			d.counters.flushes.Add(1)
		} else {
			d.counters.malformed.Add(1)
		}
		if err := q.Push(c.Head, written); err != nil {
			return err
		}
	}
	return nil
}
