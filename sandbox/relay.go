package sandbox

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// patience is how many interrupts a user sends before what they wait for is ended rather than asked to end.
const patience = 3

// backlog is how much may wait for a guest to take it. What is said beyond is lost.
const backlog = 8

// relay passes a caller's signals and sizes on to a process in the guest, one after another. The caller is heard meanwhile: a guest that
// does not answer takes a minute for each of them.
type relay struct {
	signals <-chan os.Signal     // nil is none
	sizes   <-chan agent.Winsize // nil is none
	insist  func()               // the caller has interrupted as often as patience says
	refused func(error)          // a signal did not arrive
}

func (s Streams) relay(insist func(), refused func(error)) relay {
	return relay{signals: s.Signals, sizes: s.Resize, insist: insist, refused: refused}
}

// run passes on until ctx ends.
func (r relay) run(ctx context.Context, p signalled) {
	var sending sync.WaitGroup
	defer sending.Wait()
	calls := make(chan func(), backlog)
	sending.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case call := <-calls:
				call()
			}
		}
	})
	interrupts := 0
	for {
		var call func()
		select {
		case <-ctx.Done():
			return
		case s := <-r.signals:
			if s == unix.SIGINT {
				if interrupts++; interrupts >= patience {
					r.insist()
				}
			}
			call = func() { r.pass(ctx, p, s) }
		case size := <-r.sizes:
			// A process that has just ended has no terminal to resize.
			call = func() { _ = p.Resize(ctx, size) }
		}
		select {
		case calls <- call:
		default:
		}
	}
}

// signalled is an agent.Process, as far as a relay knows it.
type signalled interface {
	Signal(ctx context.Context, number int) error
	Resize(ctx context.Context, s agent.Winsize) error
}

// pass sends one signal. That the guest has no such process any more is an answer: it has just ended.
func (r relay) pass(ctx context.Context, p signalled, s os.Signal) {
	n, ok := s.(unix.Signal)
	if !ok {
		return
	}
	err := p.Signal(ctx, int(n))
	if answer := (*agent.Failure)(nil); err != nil && !errors.As(err, &answer) && ctx.Err() == nil {
		r.refused(err)
	}
}

// unanswered reports whether a signal got no answer at all: the guest took no connection, which the VMM then resets, or said nothing on it. A
// refusal is an answer, of a sandbox that is paused as of an agent.
func unanswered(err error) bool {
	return errors.Is(err, agent.ErrLost) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}
