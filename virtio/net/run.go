package net

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spore/virtio"
)

// budget is how many frames of one direction are moved before the other has its turn.
const budget = 64

// pump is one Run: both directions, by one goroutine that waits for the descriptor and the kicks of both queues at once. A request and
// its answer then cost one wake-up, not one of each direction's.
type pump struct {
	d *Device
	a virtio.Active

	rx receiver
	tx transmitter

	// What each direction waits for: moved is nothing, idle a frame, ended the end.
	rxState, txState step

	events [8]unix.EpollEvent
	found  int // of events
	failed error

	late    sync.WaitGroup
	rxLate  atomic.Bool // what receiving waited for by the clock is over
	txLate  atomic.Bool
	limited int64        // number of the frame that was read in part whose wait for buffers is limited
	expired atomic.Int64 // number of the last whose limit has passed
}

// Run moves frames until ctx ends or the driver breaks a ring. Frames that come meanwhile wait in the descriptor.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	if up := !d.down.Load(); up != d.told { // since the state was saved
		d.told = up
		a.Changed()
	}
	if d.overflow == nil {
		d.overflow = make([]byte, maxFrame)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pump{d: d, a: a}
	p.rx.begin(d, a)
	p.tx.begin(d, a)
	defer p.late.Wait()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		d.port.interrupt()
		close(interrupted)
	})
	defer func() {
		if cancel(); !stop() {
			<-interrupted
		}
	}()
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		remove, err := d.port.add(a.Kicks(i), i)
		if err != nil {
			return err
		}
		defer remove()
	}
	defer p.quiet()
	defer p.tx.stop()
	defer p.rx.stop()
	return p.loop(ctx)
}

func (p *pump) loop(ctx context.Context) error {
	if p.rx.q == nil {
		p.rxState = ended
	}
	if p.tx.q == nil {
		p.txState = ended
	}
	ready := p.look // one closure for all waits
	for ctx.Err() == nil {
		if p.rxState == moved {
			p.receive(ctx)
		}
		if p.txState == moved {
			if err := p.transmit(ctx); err != nil {
				return err
			}
		}
		if p.rxState == stopping || p.txState == stopping {
			return errors.Join(p.rx.err, p.tx.err)
		}
		if !p.look(uintptr(p.d.port.set)) && p.rxState != moved && p.txState != moved {
			if err := p.d.port.raw.Read(ready); err != nil {
				return fmt.Errorf("wait for frames: %w", err)
			}
		}
		if p.failed != nil {
			return fmt.Errorf("wait for frames: %w", p.failed)
		}
		for _, e := range p.events[:p.found] {
			if err := p.happened(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// look takes the events that there are, and reports whether there is something to do about.
func (p *pump) look(set uintptr) bool {
	p.found, p.failed = look(set, p.events[:])
	return p.found > 0 || p.failed != nil
}

// happened takes note of an event, if it is what a direction waits for.
func (p *pump) happened(e unix.EpollEvent) error {
	switch e.Fd {
	case receiveQueue:
		if p.rxState == starved || p.rxState == short {
			p.fed()
		}
	case transmitQueue:
		if p.txState == idle {
			p.txState = moved
		}
	case tagPort:
		if p.rxState == idle && e.Events&^unix.EPOLLOUT != 0 {
			p.rxState = moved
		}
		if p.txState == blocked && e.Events&^unix.EPOLLIN != 0 {
			p.txState = moved
			return p.d.port.notifyWritable(false)
		}
	case tagWake:
		if p.rxLate.Swap(false) && p.rxState == throttled {
			p.rxState = moved
		}
		if p.txLate.Swap(false) && p.txState == throttled {
			p.txState = moved
		}
		if p.rxState == short && p.expired.Load() == p.rx.partial {
			p.rx.giveUp()
			p.fed()
		}
	}
	return nil
}

// fed lets the receiver look at its queue again.
func (p *pump) fed() {
	p.rx.q.DisableKicks()
	p.rxState = moved
}

// receive moves frames to the guest until there is nothing to move or it is the other direction's turn.
func (p *pump) receive(ctx context.Context) {
	p.rxState = p.rx.serve(ctx)
	switch p.rxState {
	case ended:
		p.d.hangUp(p.a)
	case throttled:
		p.later(ctx, p.rx.wait, &p.rxLate)
	case starved:
		if p.rx.q.EnableKicks() {
			p.fed()
			return
		}
		p.d.counters.starved.Add(1)
	case short:
		if p.rx.q.EnableKicks() {
			p.fed()
			return
		}
		// The driver may mean to give more as soon as it has emptied others, or never.
		if number := p.rx.partial; number != p.limited {
			p.limited = number
			p.wakeAfter(ctx, time.After(patience), func() { p.expire(number) })
		}
	}
}

// expire notes that a frame has waited long enough for buffers. Those of two frames may come in any order.
func (p *pump) expire(number int64) {
	for old := p.expired.Load(); old < number && !p.expired.CompareAndSwap(old, number); old = p.expired.Load() {
	}
}

// transmit moves frames from the guest until there is nothing to move or it is the other direction's turn.
func (p *pump) transmit(ctx context.Context) error {
	p.txState = p.tx.serve(ctx)
	switch p.txState {
	case blocked:
		return p.d.port.notifyWritable(true)
	case throttled:
		p.later(ctx, p.tx.wait, &p.txLate)
	}
	return nil
}

// quiet leaves the descriptor as it was found.
func (p *pump) quiet() {
	if p.txState == blocked {
		p.d.port.notifyWritable(false)
	}
}

// later sets flag after a wait for a rate limit.
func (p *pump) later(ctx context.Context, wait time.Duration, flag *atomic.Bool) {
	p.wakeAfter(ctx, p.d.clock.After(wait), func() { flag.Store(true) })
}

// wakeAfter calls note when c has something, and makes the pump look. The Run waits for it, and ends it.
func (p *pump) wakeAfter(ctx context.Context, c <-chan time.Time, note func()) {
	p.late.Go(func() {
		select {
		case <-ctx.Done():
		case <-c:
			note()
			p.d.port.interrupt()
		}
	})
}
