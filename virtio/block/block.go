// Package block is the virtio block device (virtio 1.2 §5.2) over a raw image: read, write, flush, discard,
// write-zeroes and the serial number, with token-bucket rate limits. Data moves between the image and guest memory
// without a copy in between.
package block

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"spore/virtio"
	"spore/virtio/rate"
)

// Feature bits, virtio 1.2 §5.2.3.
const (
	featureSegMax      = 1 << 2
	featureReadOnly    = 1 << 5
	featureBlkSize     = 1 << 6
	featureFlush       = 1 << 9
	featureMQ          = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
)

const (
	queueSize = 256
	maxQueues = 16
	// segMax leaves room in a queue's length of descriptors for the header and the status.
	segMax = queueSize - 2
	// configSize is struct virtio_blk_config up to and including unused1, virtio 1.2 §5.2.4.
	configSize = 60
	// MaxIDLen is the longest Config.ID in bytes.
	MaxIDLen = idSize
)

// Config is what a Device is made of.
type Config struct {
	Backend  Backend
	ID       string     // serial number the guest sees, at most MaxIDLen bytes
	ReadOnly bool       // writes, discards and write-zeroes are refused; the Backend should refuse them too
	Rate     rate.Rate  // of requests; the zero value is no bound
	Clock    rate.Clock // for Rate; nil is the machine's
	Queues   int        // request queues, at most 16; 0 means 1
}

// Device is a virtio block device. It implements virtio.Device.
type Device struct {
	backend  Backend
	id       [idSize]byte
	readOnly bool
	sectors  uint64
	features uint64
	config   [configSize]byte
	queues   int
	limit    *rate.Limiter // nil: no bound
	clock    rate.Clock
	counters counters
}

// New makes a Device. The capacity is the Backend's size in whole sectors of 512 bytes; a rest is not reachable.
func New(cfg Config) (*Device, error) {
	switch {
	case cfg.Backend == nil:
		return nil, fmt.Errorf("make block device: no backend")
	case len(cfg.ID) > MaxIDLen:
		return nil, fmt.Errorf("make block device: id of %d bytes, at most %d", len(cfg.ID), MaxIDLen)
	case cfg.Queues < 0 || cfg.Queues > maxQueues:
		return nil, fmt.Errorf("make block device: %d queues, at most %d", cfg.Queues, maxQueues)
	case !cfg.Rate.Valid():
		return nil, fmt.Errorf("make block device: negative rate")
	case cfg.Backend.Size() < 0:
		return nil, fmt.Errorf("make block device: size %d", cfg.Backend.Size())
	}
	if cfg.Clock == nil {
		cfg.Clock = rate.System{}
	}
	d := &Device{
		backend:  cfg.Backend,
		readOnly: cfg.ReadOnly,
		sectors:  uint64(cfg.Backend.Size()) / sectorSize,
		features: featureSegMax | featureBlkSize | featureFlush,
		queues:   max(cfg.Queues, 1),
		limit:    rate.NewLimiter(cfg.Rate, cfg.Clock),
		clock:    cfg.Clock,
	}
	copy(d.id[:], cfg.ID)
	if cfg.ReadOnly {
		d.features |= featureReadOnly
	} else {
		d.features |= featureDiscard | featureWriteZeroes
	}
	if d.queues > 1 {
		d.features |= featureMQ
	}
	d.fillConfig()
	return d, nil
}

// fillConfig lays out struct virtio_blk_config, virtio 1.2 §5.2.4. Nothing in it ever changes.
func (d *Device) fillConfig() {
	le := binary.LittleEndian
	le.PutUint64(d.config[0:], d.sectors)
	le.PutUint32(d.config[12:], segMax)
	le.PutUint32(d.config[20:], sectorSize)
	le.PutUint16(d.config[34:], uint16(d.queues))
	if d.readOnly {
		return
	}
	le.PutUint32(d.config[36:], maxSegmentSectors)
	le.PutUint32(d.config[40:], maxSegments)
	le.PutUint32(d.config[44:], 1) // discard_sector_alignment
	le.PutUint32(d.config[48:], maxSegmentSectors)
	le.PutUint32(d.config[52:], maxSegments)
	d.config[56] = 1 // write_zeroes_may_unmap
}

// Type is virtio.TypeBlock.
func (d *Device) Type() virtio.Type { return virtio.TypeBlock }

// Features are the device's own bits, virtio 1.2 §5.2.3.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes has one entry per request queue.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig reads struct virtio_blk_config.
func (d *Device) ReadConfig(p []byte, off uint32) {
	clear(p)
	if off < configSize {
		copy(p, d.config[off:])
	}
}

// WriteConfig does nothing: the only writable field, writeback, is not offered.
func (d *Device) WriteConfig([]byte, uint32) {}

// Run serves the request queues until ctx ends or the driver breaks a ring.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	run := func(i int) {
		err := newServer(d, a, i).serve(ctx)
		if err == nil {
			return
		}
		cancel()
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	last := -1
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		if last >= 0 {
			prev := last
			wg.Go(func() { run(prev) })
		}
		last = i
	}
	if last >= 0 {
		run(last)
	} else {
		<-ctx.Done()
	}
	wg.Wait()
	return first
}
