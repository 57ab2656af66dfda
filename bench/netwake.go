package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spore/internal/timing"
	"spore/jailer"
	"spore/network"
	"spore/vmm/api"
)

// wakeNetwork is the network of these wakes: made for the measurement.
var wakeNetwork = network.Choice{Kind: network.KindInternal, Name: "bench-wake"}

// placeLimit bounds making or removing one place.
const placeLimit = time.Minute

// places are where wakes get their network from: a pool, beside what makes a place at once.
type places struct {
	networks *network.Networks
	choice   network.Choice
	pool     *network.Pool
	class    network.Class
	ended    chan error
	stop     context.CancelFunc
}

func newPlaces(s settings, choice network.Choice) (*places, error) {
	networks, err := network.Open(network.Config{Dir: filepath.Join(s.scratch, "networks"), Plugins: []string{filepath.Join(s.bin, "cni")}})
	if err != nil {
		return nil, err
	}
	p := &places{networks: networks, choice: choice, pool: network.NewPool(networks, network.PoolConfig{Depth: 1, Max: 1}), ended: make(chan error, 1)}
	p.class = network.Request{Choice: choice}.Class()
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.ended <- p.pool.Serve(ctx) }()
	return p, nil
}

// close gives everything back.
func (p *places) close() error {
	p.stop()
	ctx, cancel := context.WithTimeout(context.Background(), placeLimit)
	defer cancel()
	return errors.Join(<-p.ended, p.networks.Remove(ctx, p.choice))
}

// wakeSandbox is whose places they are, one after the other.
const wakeSandbox = "0000000be9c4"

func (p *places) take() (*network.Attachment, error) {
	place, err := p.pool.Take(network.Request{Sandbox: wakeSandbox, Choice: p.choice})
	if err == nil && place == nil {
		err = errors.New("take a place: the pool has none")
	}
	return place, err
}

// putToSleep makes the snapshot of a guest that has a network interface.
func (p *places) putToSleep(s settings, without []jailer.Layer) (d dormant, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), placeLimit)
	defer cancel()
	if err := p.pool.Keep(ctx, p.class); err != nil {
		return d, err
	}
	place, err := p.take()
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, place.Tap.Close(), p.networks.Detach(ctx, wakeSandbox)) }()
	return putToSleepOn(s, bootMemory, without, &cable{place.Tap})
}

// networkWakes are the times of wakes with a network, and of getting that.
type networkWakes struct{ with, without, take, make, give []float64 }

// measureNetWake times what a network out of a pool adds to a wake: request → first guest instruction, of the same bare-metal guest with
// and without one, in turns; and, beside it, what making one on the spot takes.
func measureNetWake(s settings, r *results) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	p, err := newPlaces(s, wakeNetwork)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	without := noCgroup()
	plain, err := putToSleep(s, bootMemory, without)
	if err != nil {
		return fmt.Errorf("put to sleep: %w", err)
	}
	wired, err := p.putToSleep(s, without)
	if err != nil {
		return fmt.Errorf("put to sleep: %w", err)
	}
	w := &networkWakes{}
	for i := range s.wakes/10 + 5 {
		if err := w.once(s, p, plain, wired, i < 5); err != nil {
			return err
		}
	}
	where := here()
	r.add("wake, shell and network from the pool: t0 → t3, beside a shell alone", where, "ms", w.with, "without", w.without, nil)
	r.add("what a network out of the pool adds to a wake", where, "ms", differences(w.with, w.without), "", nil, &bar{value: 0.5})
	r.add("of that: to take a place out of the pool", where, "ms", w.take, "", nil, nil)
	r.add("to make a place on the spot: namespace, CNI, tap, filter", where, "ms", w.make, "", nil, nil)
	r.add("to give a place back, after the end", where, "ms", w.give, "", nil, nil)
	return measureMediatedWake(s, r, plain, wired)
}

// differences are those of samples that were taken in turns.
func differences(with, without []float64) []float64 {
	out := make([]float64, len(with))
	for i := range out {
		out[i] = with[i] - without[i]
	}
	return out
}

// once wakes one guest of each kind. The pool is full before either.
func (w *networkWakes) once(s settings, p *places, plain, wired dormant, warm bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), placeLimit)
	defer cancel()
	if err := p.pool.Keep(ctx, p.class); err != nil {
		return err
	}
	alone, err := wakeShell(s, plain, false, func() (*cable, error) { return nil, nil })
	if err != nil {
		return err
	}
	var taken float64
	var tap *os.File
	with, err := wakeShell(s, wired, true, func() (*cable, error) {
		began := timing.Monotonic()
		place, err := p.take()
		if err != nil {
			return nil, err
		}
		taken, tap = float64(timing.Monotonic()-began)/1e6, place.Tap
		return &cable{tap}, nil
	})
	if tap != nil {
		tap.Close()
	}
	began := timing.Monotonic()
	err = errors.Join(err, p.networks.Detach(ctx, wakeSandbox))
	given := float64(timing.Monotonic()-began) / 1e6
	began = timing.Monotonic()
	place, makeErr := p.networks.Attach(ctx, network.Request{Sandbox: wakeSandbox, Choice: wakeNetwork})
	made := float64(timing.Monotonic()-began) / 1e6
	if makeErr == nil {
		makeErr = errors.Join(place.Tap.Close(), p.networks.Detach(ctx, wakeSandbox))
	}
	if err = errors.Join(err, makeErr); err != nil || warm {
		return err
	}
	w.give, w.make, w.take = append(w.give, given), append(w.make, made), append(w.take, taken)
	w.with, w.without = append(w.with, with), append(w.without, alone)
	return nil
}

// wakeShell times one wake in a shell that stands ready, from the request to the guest's first instruction: connect is part of it.
func wakeShell(s settings, d dormant, wired bool, connect func() (*cable, error)) (_ float64, err error) {
	sh, err := startShell(s, bootMemory, wired, noCgroup())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sh.stop()) }()
	began := timing.Monotonic()
	on, err := connect()
	if err != nil {
		return 0, err
	}
	if err := sh.wake(d, bootMemory, on); err != nil {
		return 0, err
	}
	if _, err := sh.next(api.EventStarted); err != nil {
		return 0, err
	}
	end, err := sh.next(api.EventExit)
	return float64(end.First-began) / 1e6, err
}
