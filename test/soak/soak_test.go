// Package soak keeps every device of a jailed machine busy, from both sides, under the filters that it has in production. The guest is
// the program of the directory guest: it runs on any KVM, and judges what its devices give it.
package soak

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/jailer"
	"spore/vmm/api"
)

// patience bounds what has to end by itself.
const patience = 2 * time.Minute

// duration is SOAK, or what every run of the tests can afford.
func duration(t *testing.T) time.Duration {
	text := os.Getenv("SOAK")
	if text == "" {
		return 5 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return d
}

// running is a machine whose devices are in use.
type running struct {
	*machine
	guest net.Conn // the guest's own connection
	still []string // what was last without a new round
	woken bool
	peers sync.WaitGroup
}

// run starts a machine, from a snapshot unless that is nil, and its peers.
func run(t *testing.T, vcpus int, lie lies, from *asleep, limit time.Duration) *running {
	t.Helper()
	testenv.Require(t, testenv.KVM, testenv.Root)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	r := &running{machine: start(t, vcpus, lie, from), woken: from != nil}
	context.AfterFunc(ctx, func() { r.process.Kill() })
	t.Cleanup(func() {
		r.over.Store(true)
		r.process.Kill()
		<-r.ended
		r.broker.Close()
		r.peers.Wait()
	})
	r.event(api.EventStarted)
	var err error
	if r.guest, err = r.calls[controlPort].Accept(); err != nil {
		r.process.Kill()
		t.Fatalf("the guest does not call: %v; the VMM: %v", err, <-r.ended)
	}
	for name, peer := range r.machine.peers(ctx, lie, r.woken) {
		r.peers.Go(func() {
			if err := peer(); err != nil && !r.over.Load() {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	t.Cleanup(func() { r.guest.Close() })
	return r
}

// says is the guest's report.
func (r *running) says() [works]work {
	r.t.Helper()
	list, err := report(r.guest, r.woken)
	if err != nil {
		r.process.Kill()
		r.t.Fatalf("the guest does not answer: %v; the VMM: %v; without a new round: %v", err, <-r.ended, r.still)
	}
	return list
}

// finish has the guest power off, which must be the end of all.
func (r *running) finish() {
	r.t.Helper()
	r.over.Store(true)
	if _, err := r.guest.Write([]byte("q")); err != nil {
		r.t.Fatal(err)
	}
	if end := r.event(api.EventExit); end.Reason != api.ExitPowerOff {
		r.t.Errorf("the machine ended with %s: %s", end.Reason, end.Detail)
	}
	if err := <-r.ended; err != nil {
		r.t.Errorf("the VMM: %v", err)
	}
}

// TestSoak holds the machine to its work for SOAK, a duration: nothing dies by a filter, the guest finds nothing wrong, and there are new
// rounds of every kind to the end.
func TestSoak(t *testing.T) {
	d := duration(t)
	r := run(t, 2, noLie, nil, d+patience)
	r.work(d)
	r.finish()
}

// TestSoakWoken is TestSoak for a machine that has woken up, which is saved while it runs.
func TestSoakWoken(t *testing.T) {
	d := duration(t)
	r := run(t, 2, noLie, nil, patience)
	r.disturb(0)
	from := r.save(false)
	defer from.close()
	from.disk = make([]byte, diskSize)
	if _, err := r.disk.ReadAt(from.disk, 0); err != nil {
		t.Fatal(err)
	}
	if err := from.memory.Truncate(memory); err != nil {
		t.Fatal(err)
	}
	r.ask(api.Request{Op: api.OpResume})
	r.finish()
	r = run(t, 2, noLie, &from, d+patience)
	r.work(d)
	r.finish()
}

// work keeps the machine at it for that long, and judges what the guest says of it.
func (r *running) work(d time.Duration) {
	began, last, laps := time.Now(), r.says(), 0
	for n := 0; ; n++ { // the last lap may end a little after d
		r.disturb(n)
		now := r.says()
		if r.still = r.idle(last, now); len(r.still) > 0 {
			continue
		}
		if last, laps = now, laps+1; time.Since(began) > d {
			break
		}
	}
	took := time.Since(began).Seconds()
	r.t.Logf("%d times a new round of each kind", laps)
	for _, w := range r.says() {
		r.t.Logf("%-8s %9d rounds %10d requests, %8.0f a second", w.name(), w.Rounds, w.Requests, float64(w.Requests)/took)
		if w.Mismatches != 0 {
			r.t.Errorf("%s: %d mismatches, the first %#x", w.name(), w.Mismatches, w.Detail)
		}
	}
	for device, counters := range r.ask(api.Request{Op: api.OpStats}).Counters {
		if counters["transport_failures"] != 0 || counters["transport_panics"] != 0 {
			r.t.Errorf("%s: %v", device, counters)
		}
	}
}

// idle are the kinds of work without a round since an earlier report.
func (r *running) idle(since, now [works]work) (names []string) {
	for i, w := range now {
		if w.Rounds == since[i].Rounds && !(r.woken && w.name() == "console") {
			names = append(names, w.name())
		}
	}
	return names
}

// disturb does what a host does to a machine that works: the n-th of such things.
func (r *running) disturb(n int) {
	for range 8 {
		r.says()
	}
	r.ask(api.Request{Op: api.OpBalloon, Bytes: int64(n*7%8) * balloonMost / 8})
	r.ask(api.Request{Op: api.OpStats})
	switch {
	case n%64 == 1:
		s := r.save(true)
		s.close()
		if s.goesOn {
			return
		}
	case n%4 == 0:
		r.ask(api.Request{Op: api.OpPause})
	default:
		return
	}
	r.ask(api.Request{Op: api.OpResume})
}

// save takes a snapshot, after which the machine stands still, unless it is said to go on. A machine that woke up is saved while it runs.
func (r *running) save(goOn bool) (s asleep) {
	for name, f := range map[string]**os.File{"state": &s.state, "memory": &s.memory} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			r.t.Fatal(err)
		}
		*f = os.NewFile(uintptr(fd), name)
	}
	pagemap, err := jailer.Pagemap(r.process.Pid)
	if err != nil {
		r.t.Fatal(err)
	}
	defer pagemap.Close()
	r.ask(api.Request{Op: api.OpTrack})
	reply := r.ask(api.Request{Op: api.OpSave, Live: true, GoOn: goOn}, s.state, s.memory, pagemap)
	s.goesOn = reply.Saved.GoesOn
	for _, f := range []*os.File{s.state, s.memory} {
		if st, err := f.Stat(); err != nil || st.Size() == 0 {
			r.t.Errorf("snapshot's %s: %v, %v", f.Name(), st, err)
		}
	}
	return s
}

// TestSoakNotices gives the guest something wrong on one device at a time: it must say so of that one and of no other.
func TestSoakNotices(t *testing.T) {
	for _, lie := range []lies{lieDisk, lieImage, lieRNG, lieTyped, lieStream, liePmem, lieNet} {
		t.Run(string(lie), func(t *testing.T) {
			r := run(t, 1, lie, nil, patience)
			for noticed := false; !noticed; {
				for _, w := range r.says() {
					noticed = noticed || w.name() == string(lie) && w.Mismatches > 0
					if w.name() != string(lie) && w.Mismatches > 0 {
						t.Fatalf("%s: %d mismatches, the first %#x", w.name(), w.Mismatches, w.Detail)
					}
				}
			}
			r.finish()
		})
	}
}
