// Package balloon is the virtio memory balloon (virtio 1.2 §5.5): it takes memory back from the guest (inflate,
// deflate, deflate on OOM), reports the guest's memory statistics and gives the host the pages that the guest says
// are free (free page reporting).
package balloon

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"spore/guestmem"
	"spore/virtio"
)

// Feature bits, virtio 1.2 §5.5.3.
const (
	featureStats        = 1 << 1
	featureDeflateOnOOM = 1 << 2
	featureFreePageHint = 1 << 3 // not offered
	featureReporting    = 1 << 5
)

const (
	queueSize  = 128
	configSize = 16 // struct virtio_balloon_config, virtio 1.2 §5.5.4
	actualAt   = 4  // offset of its only writable field
	// PageSize is the unit of the device, whatever the guest's or the host's pages are, in bytes.
	PageSize = 4096
	pageBits = 12
)

// Backend gives guest memory back to the host.
type Backend interface {
	// Discard gives n bytes at a back; the guest then reads zeros, or what the memory file has there. Both are
	// multiples of PageSize and the range is inside RAM. It may be called from two goroutines at once.
	Discard(a guestmem.GPA, n uint64) error
}

// Config is what a Device is made of.
type Config struct {
	Backend Backend
	RAM     uint64 // bytes of guest RAM: the most the balloon may want
}

// Device is a virtio balloon. It implements virtio.Device. SetTarget, Size, Stats, PollStats and Counters may be called at any
// time from any goroutine.
type Device struct {
	backend  Backend
	ram      uint32        // pages
	target   atomic.Uint32 // num_pages
	actual   atomic.Uint32 // as the driver says
	counters counters
	stats    statistics

	mu      sync.Mutex
	changed func() // while Run runs
	stale   bool   // the driver has not been told of the target
}

// New makes a Device whose target is 0.
func New(cfg Config) (*Device, error) {
	if cfg.Backend == nil {
		return nil, fmt.Errorf("make balloon: no backend")
	}
	if cfg.RAM/PageSize == 0 || cfg.RAM/PageSize > 1<<32-1 {
		return nil, fmt.Errorf("make balloon: %d bytes of RAM", cfg.RAM)
	}
	d := &Device{backend: cfg.Backend, ram: uint32(cfg.RAM / PageSize)}
	d.stats.init()
	return d, nil
}

// SetTarget asks the driver to inflate or deflate the balloon to n bytes, rounded down to pages. It does not wait.
// More than RAM is an error.
func (d *Device) SetTarget(n uint64) error {
	if n/PageSize > uint64(d.ram) {
		return fmt.Errorf("set balloon target: %d bytes, RAM is %d", n, uint64(d.ram)*PageSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.target.Swap(uint32(n/PageSize)) == uint32(n/PageSize) {
		return nil
	}
	if d.changed == nil {
		d.stale = true
		return nil
	}
	d.changed()
	return nil
}

// Size returns the target and what the driver says it has given, in bytes. The second is the guest's word and
// proves nothing.
func (d *Device) Size() (target, actual uint64) {
	return uint64(d.target.Load()) * PageSize, uint64(d.actual.Load()) * PageSize
}

// Type is virtio.TypeBalloon.
func (d *Device) Type() virtio.Type { return virtio.TypeBalloon }

// Features are the device's own bits, virtio 1.2 §5.5.3.
func (d *Device) Features() uint64 { return featureStats | featureDeflateOnOOM | featureReporting }

// QueueSizes are inflateq, deflateq, statsq, free_page_vq and reporting_vq; see queues.
func (d *Device) QueueSizes() []uint16 {
	return []uint16{queueSize, queueSize, queueSize, queueSize, queueSize}
}

// ReadConfig reads struct virtio_balloon_config.
func (d *Device) ReadConfig(p []byte, off uint32) {
	var config [configSize]byte
	binary.LittleEndian.PutUint32(config[0:], d.target.Load())
	binary.LittleEndian.PutUint32(config[actualAt:], d.actual.Load())
	clear(p)
	if off < configSize {
		copy(p, config[off:])
	}
}

// WriteConfig takes the driver's actual; everything else is read-only, and a partial write is ignored.
func (d *Device) WriteConfig(p []byte, off uint32) {
	if off == actualAt && len(p) == 4 {
		d.actual.Store(binary.LittleEndian.Uint32(p))
	}
}

// Run serves the queues until ctx ends or the driver breaks a ring.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	d.attach(a.Changed)
	defer d.attach(nil)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, s := range d.servers(a) {
		wg.Go(func() {
			if err := s.contained(ctx); err != nil {
				cancel(brokenRing{err})
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if broken, ok := context.Cause(ctx).(brokenRing); ok {
		return broken.error
	}
	return nil
}

// brokenRing tells the driver's error from the end of the caller's context.
type brokenRing struct{ error }

// attach sets where configuration changes are told, and tells one that came while nobody listened.
func (d *Device) attach(changed func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = changed
	if changed != nil && d.stale {
		d.stale = false
		changed()
	}
}
