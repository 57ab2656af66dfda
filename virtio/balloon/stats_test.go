package balloon

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"
)

// taken waits until the device has taken n buffers of statistics.
func taken(t *testing.T, d *Device, n uint64) {
	t.Helper()
	for end := time.Now().Add(patience); d.Counters()["statistics"] != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d buffers taken, want %d", d.Counters()["statistics"], n)
		}
	}
}

func TestStatistics(t *testing.T) {
	d := newDevice(t, new(discards))
	g := newGuest(t)
	stop := g.run(d, featureStats, 0, 1, 2)
	if s := d.Stats(); s.Updates != 0 || len(s.Map()) != 0 {
		t.Errorf("statistics before any: %+v", s)
	}
	// The driver offers its first buffer by itself.
	g.send(2, append(rawStat(4, 1000), rawStat(5, 2000)...))
	taken(t, d, 1)
	if v, ok := d.Stats().Get(StatFree); !ok || v != 1000 {
		t.Errorf("free: %d", v)
	}
	for i := range uint64(3) {
		g.wait(2) // it has the buffer back: it is asked for newer statistics
		g.send(2, append(rawStat(4, 1001+i), rawStat(5, 2000)...))
		taken(t, d, 2+i)
		if s := d.Stats(); s.Updates != 2+i || s.Map()["free"] != 1001+i {
			t.Errorf("round %d: %+v", i, s)
		}
	}
	g.wait(2)
	g.send(2, rawStat(6, 7))
	taken(t, d, 5)

	answer := make(chan Stats, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		s, _ := d.PollStats(ctx)
		answer <- s
	}()
	g.wait(2)
	g.send(2, rawStat(6, 8))
	if s := <-answer; s.Updates != 6 || s.Map()["available"] != 8 {
		t.Errorf("polled: %+v", s)
	}
	// A stop gives the held buffer back.
	if err := stop(); err != nil || g.states[2].NextAvail != g.states[2].NextUsed || g.states[2].NextUsed != 6 {
		t.Errorf("took %d chains, gave %d back: %v", g.states[2].NextAvail, g.states[2].NextUsed, err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if s, err := d.PollStats(ended); !errors.Is(err, context.Canceled) || s.Updates != 6 {
		t.Errorf("poll of a stopped device: %+v, %v", s, err)
	}
}

func TestBAL01_HostileStatistics(t *testing.T) {
	d := newDevice(t, new(discards))
	g := newGuest(t)
	stop := g.run(d, featureStats, 0, 1, 2)
	g.submit(2, buffer{bufferAt, math.MaxUint32, false}) // 4 GiB: outside memory
	g.wait(2)
	g.submit(2, buffer{bufferAt, ramSize - bufferAt, false}) // as long as it can be
	taken(t, d, 1)
	d.Stats()
	g.wait(2)
	g.submit(2, buffer{bufferAt, 7, false}) // no statistic fits
	taken(t, d, 2)
	if err := stop(); err != nil || g.states[2].NextAvail != g.states[2].NextUsed {
		t.Errorf("took %d chains, gave %d back: %v", g.states[2].NextAvail, g.states[2].NextUsed, err)
	}
}
