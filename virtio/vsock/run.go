package vsock

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"spore/virtio"
	"spore/virtio/queue"
)

// spawner starts the goroutines of one Run: f gets the Run's context, and the Run waits for its end. Only Run itself
// and goroutines started so may call it.
type spawner func(f func(ctx context.Context))

// newSpawner makes one. A panic in what it starts, which would be our mistake, costs the guest this device and not the
// process its work: it is given to fail.
func newSpawner(ctx context.Context, wg *sync.WaitGroup, fail func(error)) spawner {
	return func(f func(ctx context.Context)) {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					fail(fmt.Errorf("vsock panicked: %v\n%s", p, debug.Stack()))
				}
			}()
			f(ctx)
		})
	}
}

// queueMark is where a queue stands.
type queueMark struct {
	set   bool
	state queue.State
}

func mark(q *queue.Queue) queueMark {
	if q == nil {
		return queueMark{}
	}
	return queueMark{true, q.State()}
}

// Run moves packets until ctx ends or the driver breaks a ring. Connections outlive it, with the bytes they hold: the
// next Run goes on with them, unless the driver has reset the device in between.
func (d *Device) Run(ctx context.Context, a virtio.Active) error {
	var qs [3]*queue.Queue
	copy(qs[:], a.Queues)
	d.mu.Lock()
	resumed := d.last[0].set && d.last == [2]queueMark{mark(qs[receiveQueue]), mark(qs[transmitQueue])}
	event := d.event
	d.mu.Unlock()
	if !resumed {
		d.drop()
	}
	if qs[receiveQueue] == nil || qs[transmitQueue] == nil {
		<-ctx.Done()
		return nil
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fail := func(err error) {
		if err != nil {
			cancel(failure{err})
		}
	}
	var wg sync.WaitGroup
	d.spawn = newSpawner(ctx, &wg, fail)
	event = event && qs[eventQueue] != nil
	d.rx.begin(ctx, qs[receiveQueue], event, func() { a.Used(receiveQueue) }, fail)
	// Before the goroutines that open connections: what they open is theirs to start, what is open already is ours.
	for _, c := range d.table.list() {
		d.resume(c)
	}
	if event {
		e := &teller{d: d, q: qs[eventQueue], used: func() { a.Used(eventQueue) }}
		d.spawn(func(ctx context.Context) { fail(e.serve(ctx)) })
	}
	d.spawn(func(ctx context.Context) { fail(d.rx.serve(ctx, qs[receiveQueue])) })
	t := &transmitter{d: d, q: qs[transmitQueue], used: func() { a.Used(transmitQueue) }}
	d.spawn(func(ctx context.Context) { fail(t.serve(ctx)) })
	if d.broker.file != nil {
		d.spawn(d.serveBroker)
	}
	wg.Wait()
	<-ctx.Done()
	return d.stop(ctx, qs)
}

// failure is the cause that ends a Run other than the end of its context.
type failure struct{ error }

func (e failure) Unwrap() error { return e.error }

// stop leaves the queues and remembers where.
func (d *Device) stop(ctx context.Context, qs [3]*queue.Queue) error {
	d.rx.end()
	for _, c := range d.table.list() {
		c.mu.Lock()
		if c.timer != nil {
			c.timer.Stop()
		}
		c.mu.Unlock()
	}
	d.mu.Lock()
	d.last = [2]queueMark{mark(qs[receiveQueue]), mark(qs[transmitQueue])}
	d.mu.Unlock()
	if err := (failure{}); errors.As(context.Cause(ctx), &err) {
		return err.error
	}
	return nil
}

// resume starts what c needs in this Run.
func (d *Device) resume(c *conn) {
	d.limitTime(c)
	c.mu.Lock()
	e := effect(0)
	if c.sock.file != nil && !c.ended {
		c.sock.file.SetDeadline(time.Time{}) // the last Run's end
		if c.state == open {
			e |= pump
		}
		if c.buf.len() > 0 {
			c.flushing = true
			c.users++
			e |= flush
		}
	}
	c.mu.Unlock()
	d.do(c, e)
}

// do does what a method of c's could not do with c.mu held. It is called by the goroutines of a Run only.
func (d *Device) do(c *conn, e effect) {
	if e&post != 0 {
		d.rx.post(c)
	}
	if e&pump != 0 && c.enter() {
		d.spawn(c.pump)
	}
	if e&flush != 0 {
		d.spawn(c.flush)
	}
	switch {
	case e&violate != 0:
		d.counters.violations.Add(1)
		d.end(c, endReset)
	case e&finish != 0:
		d.end(c, endFinished)
	case e&discard != 0:
		d.end(c, endByReset)
	}
}

// enter takes the pump's place among the users of c's socket. It reports false where c is not open any more.
func (c *conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.live() || c.ended {
		return false
	}
	if c.pumping {
		panic("bug: a second pump for one connection")
	}
	c.pumping = true
	c.users++
	return true
}

// ending is how a connection ends.
type ending uint8

const (
	endReset    ending = iota // the guest gets a reset; bytes held are dropped
	endFinished               // the guest gets a reset; bytes held go to the host
	endByReset                // the guest gets nothing: it sent the reset; bytes held go to the host
	endSilently               // the guest gets nothing; bytes held are dropped
)

// end ends c, whatever its state. A second end does nothing, but that of a draining connection ends the draining.
func (d *Device) end(c *conn, how ending) {
	c.mu.Lock()
	if c.state == gone || c.state == draining && how == endByReset {
		c.mu.Unlock()
		return
	}
	// A request that was not sent needs no reset, nor does a guest that had its answer.
	answer := (how == endReset || how == endFinished) && c.state != draining && c.owed&oweRequest == 0
	drain := (how == endFinished || how == endByReset) && c.state == open && c.buf.len() > 0
	h := c.header(opReset)
	c.owed = 0
	c.state = gone
	if drain {
		c.state = draining
	} else {
		c.close()
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.wake()
	d.table.release(c, drain)
	d.rx.forget(c, true)
	if answer {
		d.rx.reply(h)
	}
}
