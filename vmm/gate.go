package vmm

import (
	"context"
	"sync"
	"sync/atomic"
)

// What the vCPUs are asked for.
const (
	wantPause uint32 = iota // the zero value: a new machine is paused
	wantRun
	wantStop
)

// gate is where vCPUs park. The controller states what it wants, kicks them, and waits until all are parked or gone.
type gate struct {
	want atomic.Uint32 // read by vCPUs after each kick; written under mu
	mu   sync.Mutex
	cond sync.Cond
	in   int // vCPUs that run
}

func newGate() *gate {
	g := &gate{}
	g.cond.L = &g.mu
	return g
}

// pass blocks a vCPU until it may run; false means that it must end.
func (g *gate) pass() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.want.Load() == wantPause {
		g.cond.Wait()
	}
	if g.want.Load() == wantStop {
		return false
	}
	g.in++
	return true
}

// leave says that a vCPU which passed no longer runs.
func (g *gate) leave() {
	g.mu.Lock()
	g.in--
	g.mu.Unlock()
	g.cond.Broadcast()
}

// set states what is wanted. Stop is final.
func (g *gate) set(want uint32) {
	g.mu.Lock()
	if g.want.Load() != wantStop {
		g.want.Store(want)
	}
	g.mu.Unlock()
	g.cond.Broadcast()
}

// settle waits until no vCPU runs, or ctx ends.
func (g *gate) settle(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock() // a waiter between its check and its Wait would miss the broadcast
		defer g.mu.Unlock()
		g.cond.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.in > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		g.cond.Wait()
	}
	return nil
}
