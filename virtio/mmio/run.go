package mmio

import (
	"context"
	"errors"
	"fmt"
	"os"

	"spore/virtio"
	"spore/virtio/queue"
)

// runner is one run of the device, from start to stop.
type runner struct {
	cancel   context.CancelFunc
	done     chan struct{} // closed when Run has returned
	stopping bool          // cancel was called
}

// start makes the queues and lets the device run. fresh says that the driver has just set them up. A queue that
// cannot be is the driver's fault: the device asks for a reset, and nothing runs (TR-05). mu is held.
func (t *Transport) start(fresh bool) {
	if t.paused || t.needsReset.Load() {
		return
	}
	f := queue.Features{Indirect: t.driverFeatures&virtio.FeatureIndirect != 0, EventIdx: t.driverFeatures&virtio.FeatureEventIdx != 0}
	t.queues = make([]*queue.Queue, len(t.states))
	for i, s := range t.states {
		if !s.Ready {
			continue
		}
		if fresh {
			s.NextAvail, s.NextUsed = 0, 0
		}
		q, err := queue.New(t.cfg.Mem, s, f, t.waitFile(i))
		if err != nil {
			t.fail(err)
			t.queues = nil
			return
		}
		t.queues[i] = q
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{cancel: cancel, done: make(chan struct{})}
	t.runner = r
	active := virtio.Active{Features: t.driverFeatures, Mem: t.cfg.Mem, Queues: t.queues, Used: t.used, Changed: t.changed, Kicks: t.cfg.Kick}
	go func() {
		defer close(r.done)
		if err := t.runDevice(ctx, active); err != nil && ctx.Err() == nil {
			t.fail(err)
		}
	}()
}

// waitFile is the eventfd by which queue i is waited for, nil without one.
func (t *Transport) waitFile(i int) *os.File {
	if _, own := t.cfg.Device.(virtio.KickListener); own || t.cfg.Kick == nil {
		return nil
	}
	return t.cfg.Kick(i)
}

// runDevice runs the device model. A panic in it is counted and logged with its stack.
func (t *Transport) runDevice(ctx context.Context, a virtio.Active) error {
	err := virtio.Contain(func() error { return t.cfg.Device.Run(ctx, a) })
	if p, ok := errors.AsType[*virtio.PanicError](err); ok {
		t.counts.panics.Add(1)
		t.cfg.Log.Error("device model panicked", "device", t.cfg.Device.Type(), "err", p.Value, "stack", string(p.Stack))
	}
	return err
}

// stop ends the run, if there is one, and keeps where the queues are. It fails only when ctx ends before the run
// does; it may be tried again. mu is held: the device's callbacks do not take it.
func (t *Transport) stop(ctx context.Context) error {
	if t.runner == nil {
		return nil
	}
	t.runner.stopping = true
	t.runner.cancel()
	select {
	case <-t.runner.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the device to stop: %w", context.Cause(ctx))
	}
	t.runner = nil
	for i, q := range t.queues {
		if q != nil {
			t.states[i] = q.State()
		}
	}
	return nil
}

// fail makes the device ask for a reset (virtio 1.2 §2.1.2) and tells the driver so.
func (t *Transport) fail(err error) {
	t.counts.failures.Add(1)
	t.cfg.Log.Debug("device needs reset", "device", t.cfg.Device.Type(), "err", err)
	t.needsReset.Store(true)
	t.changed()
}

// used raises the used-buffer interrupt.
func (t *Transport) used(int) {
	t.interrupts.Or(interruptUsed)
	t.cfg.Interrupt()
}

// changed raises the configuration-change interrupt.
func (t *Transport) changed() {
	t.generation.Add(1)
	t.interrupts.Or(interruptChanged)
	t.cfg.Interrupt()
}
