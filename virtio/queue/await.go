package queue

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// awaiting is what Await keeps from call to call, so that a kick costs no allocation and no more system calls than the poller's.
type awaiting struct {
	raw   syscall.RawConn    // of the kicks' file
	ready func(uintptr) bool // q.ready
	slept bool               // of one call: the poller has woken it
	done  <-chan struct{}    // of the context that interrupts, while one does
	stop  func() bool        // takes that back
}

// Await is Wait for a device whose goroutine is the only one to use the queue: it blocks until the driver has made a chain available, or
// ctx ends, whose error it then returns; it may return without either, as any wait. Kicks must be enabled. Where Wait takes the count
// of the eventfd, Await leaves it and looks at the ring. A queue is waited for with one or the other.
func (q *Queue) Await(ctx context.Context) error {
	if q.kick.first || q.kick.file == nil {
		return q.Wait(ctx)
	}
	a := &q.await
	if a.raw == nil {
		raw, err := q.kick.file.SyscallConn()
		if err != nil {
			return err
		}
		a.raw, a.ready = raw, q.ready
	}
	if a.done != ctx.Done() {
		if a.stop != nil {
			a.stop()
		}
		a.done, a.stop = ctx.Done(), context.AfterFunc(ctx, func() { q.kick.file.SetReadDeadline(time.Unix(1, 0)) })
	}
	for {
		a.slept = false
		err := a.raw.Read(a.ready)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
		// The end of another context, which nobody waits for any more. Should this one end now, its own deadline comes after the look.
		q.kick.file.SetReadDeadline(time.Time{})
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// ready is asked by the poller twice: when it has begun to listen, so that what is available now needs no kick, and when there was one.
func (q *Queue) ready(uintptr) bool {
	if q.await.slept || q.Pending() {
		return true
	}
	q.await.slept = true
	return false
}
