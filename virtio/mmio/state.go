package mmio

import (
	"encoding/json"
	"errors"
	"fmt"

	"spore/virtio"
	"spore/virtio/queue"
)

// State is what a snapshot keeps of a transport and its device. It is untrusted: LoadState validates it.
type State struct {
	Type              virtio.Type     `json:"type"`
	Status            uint32          `json:"status"`
	NeedsReset        bool            `json:"needs_reset"`
	DriverFeatures    uint64          `json:"driver_features"`
	DeviceFeaturesSel uint32          `json:"device_features_sel"`
	DriverFeaturesSel uint32          `json:"driver_features_sel"`
	QueueSel          uint32          `json:"queue_sel"`
	Interrupts        uint32          `json:"interrupts"`
	Generation        uint32          `json:"generation"`
	Queues            []queue.State   `json:"queues"`
	Device            json.RawMessage `json:"device"`
}

// ErrState is matched by every error about a State that no device can be in.
var ErrState = errors.New("impossible device state")

// SaveState returns the state of a paused device.
func (t *Transport) SaveState() (State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.runner != nil {
		return State{}, errors.New("save device state: the device is running")
	}
	device, err := t.cfg.Device.SaveState()
	if err != nil {
		return State{}, fmt.Errorf("save device state: %w", err)
	}
	return State{
		Type: t.cfg.Device.Type(), Status: t.status, NeedsReset: t.needsReset.Load(), DriverFeatures: t.driverFeatures,
		DeviceFeaturesSel: t.deviceFeaturesSel, DriverFeaturesSel: t.driverFeaturesSel, QueueSel: t.queueSel,
		Interrupts: t.interrupts.Load(), Generation: t.generation.Load(),
		Queues: append([]queue.State{}, t.states...), Device: device,
	}, nil
}

// LoadState puts a device that is not in use into the state s; Resume lets it run. On error nothing has changed.
func (t *Transport) LoadState(s State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.runner != nil || t.status != 0 {
		return errors.New("load device state: the device is in use")
	}
	if err := t.check(s); err != nil {
		return fmt.Errorf("load device state: %w", err)
	}
	if err := t.cfg.Device.LoadState(s.Device); err != nil {
		return fmt.Errorf("load device state: %w", err)
	}
	t.status, t.driverFeatures = s.Status, s.DriverFeatures
	t.deviceFeaturesSel, t.driverFeaturesSel, t.queueSel = s.DeviceFeaturesSel, s.DriverFeaturesSel, s.QueueSel
	copy(t.states, s.Queues)
	t.needsReset.Store(s.NeedsReset)
	t.interrupts.Store(s.Interrupts)
	t.generation.Store(s.Generation)
	t.paused = true
	return nil
}

// check reports the first contradiction in s (SNAP-04).
func (t *Transport) check(s State) error {
	switch {
	case s.Type != t.cfg.Device.Type():
		return fmt.Errorf("%w: it is of device type %d, this is %d", ErrState, s.Type, t.cfg.Device.Type())
	case !legal(s.Status):
		return fmt.Errorf("%w: status %#x", ErrState, s.Status)
	case s.DriverFeatures&^t.offered() != 0 && s.Status&virtio.StatusFeaturesOK != 0:
		return fmt.Errorf("%w: features %#x were never offered", ErrState, s.DriverFeatures&^t.offered())
	case s.DriverFeatures&virtio.FeatureVersion1 == 0 && s.Status&virtio.StatusFeaturesOK != 0:
		return fmt.Errorf("%w: features %#x without VERSION_1", ErrState, s.DriverFeatures)
	case s.Interrupts&^(interruptUsed|interruptChanged) != 0:
		return fmt.Errorf("%w: interrupts %#x", ErrState, s.Interrupts)
	case len(s.Queues) != len(t.sizes):
		return fmt.Errorf("%w: %d queues, want %d", ErrState, len(s.Queues), len(t.sizes))
	}
	for i, q := range s.Queues {
		if q.Size > t.sizes[i] || q.Ready && (q.Size == 0 || q.Size&(q.Size-1) != 0 || s.Status&virtio.StatusFeaturesOK == 0) {
			return fmt.Errorf("%w: queue %d has size %d, ready %v", ErrState, i, q.Size, q.Ready)
		}
		if !q.Ready || s.Status&virtio.StatusDriverOK == 0 {
			continue
		}
		if _, err := queue.New(t.cfg.Mem, q, queue.Features{}, nil); err != nil {
			return fmt.Errorf("%w: queue %d: %w", ErrState, i, err)
		}
	}
	return nil
}
