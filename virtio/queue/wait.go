package queue

import (
	"context"
	"os"
	"time"
)

// kicks is where Wait listens.
type kicks struct {
	file  *os.File      // an eventfd; nil in tests
	wake  chan struct{} // instead of file
	first bool          // the next Wait returns at once
}

// Kick wakes Wait of a queue that was made without an eventfd. Any goroutine may call it.
func (q *Queue) Kick() {
	select {
	case q.kick.wake <- struct{}{}:
	default:
	}
}

// Wait blocks until the driver kicks or ctx ends, whose error it then returns. The first call after New
// returns at once, so that chains made available while the device was stopped are seen.
func (q *Queue) Wait(ctx context.Context) error {
	if q.kick.first {
		q.kick.first = false
		return ctx.Err()
	}
	if q.kick.file == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.kick.wake:
			return nil
		}
	}
	return q.kick.read(ctx)
}

// read takes the eventfd's count. The end of ctx interrupts it by a deadline in the past, which is taken back
// before read returns, so that the next Wait is not hit by it.
func (k *kicks) read(ctx context.Context) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		k.file.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	var count [8]byte
	_, err := k.file.Read(count[:])
	if !stop() {
		<-interrupted
		k.file.SetReadDeadline(time.Time{})
		return ctx.Err()
	}
	return err
}
