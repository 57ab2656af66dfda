package block

import (
	"testing"
	"time"

	"spore/virtio/block/blocktest"
	"spore/virtio/rate"
)

// fakeClock is a Clock that a test moves; waiting moves it too.
type fakeClock struct{ now time.Time }

func (c *fakeClock) Now() time.Time { return c.now }
func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.now = c.now.Add(d)
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

func TestThrottledInOrder(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors)}
	clock := &fakeClock{now: time.Unix(1000, 0)}
	d := newDevice(t, Config{Backend: disk, Clock: clock, Rate: rate.Rate{OpsPerSecond: 1, OpsBurst: 1}})
	r := newRing(t)
	stop := r.run(d, allFeatures, nil)
	for i := range slots {
		r.put(i, typeIn, 0, nil, sectorSize)
	}
	r.submit(all()...)
	for want := range slots {
		if slot, _ := r.wait(); slot != want {
			t.Errorf("slot %d came at place %d", slot, want)
		}
	}
	stop()
	if took := clock.now.Sub(time.Unix(1000, 0)); took < (slots-1)*time.Second {
		t.Errorf("%d requests took %v", slots, took)
	}
}

// stuckClock is a Clock on which waiting never ends.
type stuckClock struct{ waiting chan struct{} }

func (c stuckClock) Now() time.Time { return time.Unix(1000, 0) }
func (c stuckClock) After(time.Duration) <-chan time.Time {
	c.waiting <- struct{}{}
	return nil
}

// A request that waits for the rate limit waits on the ring: a pause finds it there.
func TestThrottledPause(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors)}
	clock := stuckClock{make(chan struct{})}
	d := newDevice(t, Config{Backend: disk, Clock: clock, Rate: rate.Rate{OpsPerSecond: 1, OpsBurst: 3}})
	r := newRing(t)
	stop := r.run(d, allFeatures, nil)
	for i := range slots {
		r.put(i, typeIn, 0, nil, sectorSize)
	}
	r.submit(all()...)
	<-clock.waiting
	if err := stop(); err != nil {
		t.Error(err)
	}
	if r.state.NextAvail != 3 || r.state.NextUsed != 3 {
		t.Errorf("took %d chains, gave %d back, want 3", r.state.NextAvail, r.state.NextUsed)
	}
	if d.Counters()["throttled"] == 0 {
		t.Error("not counted")
	}
}
