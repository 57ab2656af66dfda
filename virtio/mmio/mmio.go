// Package mmio is the virtio-mmio transport, version 2 (virtio 1.2 §4.2): a register file that turns what a
// driver writes into a device that runs, and nothing that it writes into anything else. There is one for every
// device; a device model knows none of it.
package mmio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

// Config is what a transport needs. All fields but Kick and Log must be set.
type Config struct {
	Device    virtio.Device
	Mem       *guestmem.Memory
	Interrupt func()                   // raise the device's interrupt line, an edge; any goroutine may call it
	Kick      func(queue int) *os.File // the eventfd of a queue's kicks, non-blocking, owned by the caller; nil in tests
	Log       *slog.Logger
}

// Transport is one virtio-mmio device. Read and Write may be called by any vCPU thread at any time and
// understand every offset, width and value.
type Transport struct {
	cfg    Config
	sizes  []uint16
	counts counts

	interrupts atomic.Uint32 // InterruptStatus; the device sets bits, the driver clears them
	generation atomic.Uint32 // ConfigGeneration
	needsReset atomic.Bool   // DEVICE_NEEDS_RESET

	mu                sync.Mutex // the register file below, and starting and stopping the device
	status            uint32
	driverFeatures    uint64
	deviceFeaturesSel uint32
	driverFeaturesSel uint32
	queueSel          uint32
	states            []queue.State
	queues            []*queue.Queue // while the device is in use
	runner            *runner        // nil while it does not run
	paused            bool
}

// counts are what a guest can move. They only grow.
type counts struct {
	refused  atomic.Uint64 // writes that the transport's state or the register does not allow
	kicks    atomic.Uint64 // kicks that came as exits
	resets   atomic.Uint64
	failures atomic.Uint64 // times the device asked for a reset
	panics   atomic.Uint64 // of the device model, turned into a failure
}

// New makes a transport whose device is reset.
func New(cfg Config) *Transport {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	t := &Transport{cfg: cfg, sizes: cfg.Device.QueueSizes()}
	t.states = make([]queue.State, len(t.sizes))
	return t
}

// offered are the feature bits a driver may accept.
func (t *Transport) offered() uint64 {
	return t.cfg.Device.Features() | virtio.FeatureVersion1 | virtio.FeatureIndirect | virtio.FeatureEventIdx
}

// Read answers a load of len(p) bytes at off. Registers are 4 bytes wide; any other access of one, an unknown
// offset and a write-only register read as zero (TR-06).
func (t *Transport) Read(off uint64, p []byte) {
	clear(p)
	if off >= regConfig {
		if off-regConfig < 1<<16 {
			t.cfg.Device.ReadConfig(p, uint32(off-regConfig))
		}
		return
	}
	if len(p) == 4 {
		t.mu.Lock()
		defer t.mu.Unlock()
		binary.LittleEndian.PutUint32(p, t.register(off))
	}
}

func (t *Transport) register(off uint64) uint32 {
	switch off {
	case regMagic:
		return magic
	case regVersion:
		return version
	case regDeviceID:
		return uint32(t.cfg.Device.Type())
	case regVendorID:
		return vendor
	case regDeviceFeatures:
		if t.deviceFeaturesSel < 2 {
			return uint32(t.offered() >> (32 * t.deviceFeaturesSel))
		}
	case regQueueNumMax:
		if t.selected() != nil {
			return uint32(t.sizes[t.queueSel])
		}
	case regQueueReady:
		if s := t.selected(); s != nil && s.Ready {
			return 1
		}
	case regInterruptStatus:
		return t.interrupts.Load()
	case regStatus:
		if t.needsReset.Load() {
			return t.status | virtio.StatusNeedsReset
		}
		return t.status
	case regSHMLenLow, regSHMLenHigh, regSHMBaseLow, regSHMBaseHigh:
		return ^uint32(0)
	case regConfigGeneration:
		return t.generation.Load()
	}
	return 0
}

// selected is the state of the queue that QueueSel names, nil when there is none (TR-03).
func (t *Transport) selected() *queue.State {
	if t.queueSel >= uint32(len(t.states)) {
		return nil
	}
	return &t.states[t.queueSel]
}

// Write takes a store of len(p) bytes at off. What is not allowed now is counted and changes nothing. A write
// of 0 to Status waits until the device has stopped, which its contract keeps short.
func (t *Transport) Write(off uint64, p []byte) {
	if off >= regConfig {
		if off-regConfig < 1<<16 {
			t.cfg.Device.WriteConfig(p, uint32(off-regConfig))
		}
		return
	}
	if len(p) != 4 {
		t.counts.refused.Add(1)
		return
	}
	v := binary.LittleEndian.Uint32(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.set(off, v) {
		t.counts.refused.Add(1)
	}
}

// set changes one register and reports whether that was allowed.
func (t *Transport) set(off uint64, v uint32) bool {
	switch off {
	case regDeviceFeaturesSel:
		t.deviceFeaturesSel = v
	case regDriverFeaturesSel:
		t.driverFeaturesSel = v
	case regDriverFeatures:
		return t.setDriverFeatures(v)
	case regQueueSel:
		t.queueSel = v
	case regQueueNotify:
		return t.kick(v)
	case regInterruptACK:
		t.interrupts.And(^v)
	case regStatus:
		return t.setStatus(v)
	default:
		return t.setQueue(off, v)
	}
	return true
}

// setDriverFeatures takes half of the accepted bits, until FEATURES_OK (TR-08).
func (t *Transport) setDriverFeatures(v uint32) bool {
	if t.status&virtio.StatusDriver == 0 || t.status&virtio.StatusFeaturesOK != 0 || t.driverFeaturesSel > 1 {
		return false
	}
	shift := 32 * t.driverFeaturesSel
	t.driverFeatures = t.driverFeatures&^(0xffffffff<<shift) | uint64(v)<<shift
	return true
}

// setQueue configures the selected queue. That is possible between FEATURES_OK and DRIVER_OK and at no other
// time: a ring that moves under a running device is a way out (CVE-2026-5747, TR-01).
func (t *Transport) setQueue(off uint64, v uint32) bool {
	s := t.selected()
	if s == nil || t.status&virtio.StatusFeaturesOK == 0 || t.status&virtio.StatusDriverOK != 0 {
		return false
	}
	if off == regQueueReady {
		if v != 0 && (s.Size == 0 || s.Size > t.sizes[t.queueSel] || s.Size&(s.Size-1) != 0) {
			return false // TR-02
		}
		s.Ready = v != 0
		return true
	}
	if s.Ready {
		return false
	}
	switch off {
	case regQueueNum:
		if v > uint32(t.sizes[t.queueSel]) {
			return false
		}
		s.Size = uint16(v)
	case regQueueDescLow, regQueueDescHigh:
		setHalf(&s.Desc, off == regQueueDescHigh, v)
	case regQueueDriverLow, regQueueDriverHigh:
		setHalf(&s.Avail, off == regQueueDriverHigh, v)
	case regQueueDeviceLow, regQueueDeviceHigh:
		setHalf(&s.Used, off == regQueueDeviceHigh, v)
	default:
		return false
	}
	return true
}

func setHalf(a *guestmem.GPA, high bool, v uint32) {
	if high {
		*a = *a&0xffffffff | guestmem.GPA(v)<<32
	} else {
		*a = *a&^0xffffffff | guestmem.GPA(v)
	}
}

// setStatus moves through the device's life.
func (t *Transport) setStatus(v uint32) bool {
	v &^= virtio.StatusNeedsReset
	if v == 0 {
		t.reset()
		return true
	}
	if v == t.status {
		return true
	}
	if v == t.status|virtio.StatusFailed {
		t.status = v
		return true
	}
	if to, ok := transitions[t.status]; !ok || v != to {
		return false // TR-04
	}
	if v&virtio.StatusFeaturesOK != 0 && t.status&virtio.StatusFeaturesOK == 0 {
		if t.driverFeatures&^t.offered() != 0 || t.driverFeatures&virtio.FeatureVersion1 == 0 {
			return false // FEATURES_OK reads back clear (virtio 1.2 §3.1.1)
		}
	}
	t.status = v
	if v == running {
		t.start(true)
	}
	return true
}

// reset brings everything back to what New made.
func (t *Transport) reset() {
	t.stop(context.Background()) // without an end of its context it cannot fail
	t.counts.resets.Add(1)
	t.status, t.driverFeatures, t.queues = 0, 0, nil
	t.deviceFeaturesSel, t.driverFeaturesSel, t.queueSel = 0, 0, 0
	clear(t.states)
	t.interrupts.Store(0)
	t.needsReset.Store(false)
}

// kick passes on a kick that came as an exit. Before DRIVER_OK, or for a queue that is not there, it is
// nothing (TR-03, TR-10).
func (t *Transport) kick(v uint32) bool {
	if v >= uint32(len(t.queues)) || t.queues[v] == nil {
		return false
	}
	t.counts.kicks.Add(1)
	if t.cfg.Kick == nil {
		t.queues[v].Kick()
		return true
	}
	one := [8]byte{1}
	_, err := t.cfg.Kick(int(v)).Write(one[:])
	return err == nil
}

// Counters returns what the guest has moved, the device's own counters included.
func (t *Transport) Counters() map[string]uint64 {
	m := map[string]uint64{
		"transport_refused": t.counts.refused.Load(), "transport_kicks": t.counts.kicks.Load(), "transport_resets": t.counts.resets.Load(),
		"transport_failures": t.counts.failures.Load(), "transport_panics": t.counts.panics.Load(),
	}
	if d, ok := t.cfg.Device.(interface{ Counters() map[string]uint64 }); ok {
		for name, n := range d.Counters() {
			m[name] = n
		}
	}
	return m
}

// Pause stops the device where it is; the register file stays. It fails when ctx ends before the device has
// stopped, which only a device that breaks its contract lets happen; then Pause may be tried again, and Resume
// refuses. Pausing twice is no error.
func (t *Transport) Pause(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = true
	if err := t.stop(ctx); err != nil {
		return fmt.Errorf("pause device: %w", err)
	}
	return nil
}

// PauseSoon begins what Pause does and waits for nothing, so that several devices stop at the same time. Pause must follow.
func (t *Transport) PauseSoon() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = true
	if t.runner != nil {
		t.runner.stopping = true
		t.runner.cancel()
	}
}

// Resume lets the device go on after Pause or LoadState. An interrupt that the driver has not acknowledged is
// raised again, for its edge may have been lost with the machine that was saved; a driver takes one too many.
func (t *Transport) Resume() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.runner != nil && t.runner.stopping {
		return errors.New("resume device: it has not stopped yet")
	}
	t.paused = false
	if t.status == running && t.runner == nil {
		t.start(false)
	}
	if t.interrupts.Load() != 0 {
		t.cfg.Interrupt()
	}
	return nil
}

// Close stops the device for good.
func (t *Transport) Close() error {
	return t.Pause(context.Background())
}
