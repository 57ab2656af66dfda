package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"spore/internal/timing"
	"spore/network"
	"spore/network/api"
	"spore/network/mediator"
	"spore/network/policy"
)

// mediatedWakes are the times of wakes on a mediated network, whose place and spore-net come out of a pool, and of those on none.
type mediatedWakes struct {
	with, without []float64
	ready         []float64 // request → spore-net forwards
	launch        []float64 // of one that is started on the spot
}

// measureMediatedWake is measureNetWake for nat: between the guest and the network stands a process, which waits in the place without
// a configuration, and gets it while the machine wakes.
func measureMediatedWake(s settings, r *results, plain, wired dormant) (err error) {
	s.scratch = filepath.Join(s.scratch, "nat")
	if err := os.MkdirAll(s.scratch, 0o700); err != nil {
		return err
	}
	p, err := newPlaces(s, network.Choice{Kind: network.KindNAT})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	w := &mediatedWakes{}
	for i := range s.wakes/10 + 5 {
		if err := w.once(s, p, plain, wired, i < 5); err != nil {
			return err
		}
	}
	where := here()
	r.add("wake, shell, nat place and its spore-net from the pool: t0 → t3, beside a shell alone", where, "ms", w.with, "without", w.without, nil)
	r.add("what nat out of the pool adds to a wake", where, "ms", differences(w.with, w.without), "", nil, &bar{value: 0.5})
	r.add("t0 → spore-net forwards, beside the wake", where, "ms", w.ready, "", nil, nil)
	r.add("to start spore-net on the spot, before its configuration", where, "ms", w.launch, "", nil, nil)
	return nil
}

// once wakes one guest of each kind. The pool is full before either.
func (w *mediatedWakes) once(s settings, p *places, plain, wired dormant, warm bool) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), placeLimit)
	defer cancel()
	if err := p.pool.Keep(ctx, p.class); err != nil {
		return err
	}
	alone, err := wakeShell(s, plain, false, func() (*cable, error) { return nil, nil })
	if err != nil {
		return err
	}
	place, err := p.take()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.networks.Detach(ctx, wakeSandbox)) }()
	began := timing.Monotonic()
	waiting, err := mediator.Launch(ctx, mediator.Config{Exe: filepath.Join(s.bin, "spore-net"), NetNS: place.NetNS, ID: wakeSandbox, Without: noCgroup()})
	if err != nil {
		return err
	}
	launched := float64(timing.Monotonic()-began) / 1e6
	machine, forwarder, err := mediator.Frames()
	if err != nil {
		return errors.Join(err, waiting.Close())
	}
	defer machine.Close()
	defer forwarder.Close()
	var t0 int64
	forwards := make(chan error, 1)
	var process *mediator.Process
	var readyAfter float64
	with, wakeErr := wakeShell(s, wired, true, func() (*cable, error) {
		t0 = timing.Monotonic()
		go func() {
			var err error
			process, err = waiting.Configure(ctx, nil, benchMediation(), mediator.Files{Frames: forwarder})
			readyAfter = float64(timing.Monotonic()-t0) / 1e6
			forwards <- err
		}()
		return &cable{machine}, nil
	})
	if t0 == 0 {
		return errors.Join(wakeErr, waiting.Close())
	}
	if err := <-forwards; err != nil {
		return errors.Join(fmt.Errorf("configure spore-net: %w", err), wakeErr)
	}
	if err := errors.Join(wakeErr, process.Close()); err != nil || warm {
		return err
	}
	w.with, w.without = append(w.with, with), append(w.without, alone)
	w.ready, w.launch = append(w.ready, readyAfter), append(w.launch, launched)
	return nil
}

// benchMediation is a configuration with a rule of each kind.
func benchMediation() api.Config {
	return api.Config{
		Sandbox: wakeSandbox, DNS: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		Rules: policy.Source{Allow: []string{"example.org", "*.example.net", "192.0.2.0/24:443"}},
	}
}
