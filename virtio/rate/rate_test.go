package rate

import (
	"testing"
	"time"
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

func TestRateMean(t *testing.T) {
	for _, c := range []struct {
		name string
		rate Rate
		n    uint64        // bytes per request
		ops  int           // requests
		want time.Duration // they take
	}{
		{"operations", Rate{OpsPerSecond: 100, OpsBurst: 10}, 1 << 20, 1010, 10 * time.Second},
		{"bytes", Rate{BytesPerSecond: 1 << 20, BytesBurst: 4096}, 4096, 2561, 10 * time.Second},
		{"bytes in requests larger than the burst", Rate{BytesPerSecond: 1 << 20, BytesBurst: 1}, 1 << 20, 11, 10 * time.Second},
		{"the stricter of both", Rate{BytesPerSecond: 1 << 30, OpsPerSecond: 10, OpsBurst: 1}, 512, 101, 10 * time.Second},
		{"burst of a second", Rate{OpsPerSecond: 100}, 0, 1100, 10 * time.Second},
		{"one in ten seconds", Rate{OpsPerSecond: 1, OpsBurst: 1}, 0, 11, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			clock := &fakeClock{start}
			l := NewLimiter(c.rate, clock)
			for range c.ops {
				for wait := l.Delay(); wait > 0; wait = l.Delay() {
					<-clock.After(wait)
				}
				l.Take(c.n)
			}
			took := clock.now.Sub(start)
			if slack := c.want / 50; took < c.want-slack || took > c.want+slack {
				t.Errorf("%d requests took %v, want %v", c.ops, took, c.want)
			}
		})
	}
}

func TestRateBounds(t *testing.T) {
	if NewLimiter(Rate{}, System{}) != nil {
		t.Error("the zero Rate bounds something")
	}
	clock := &fakeClock{time.Unix(1000, 0)}
	l := NewLimiter(Rate{BytesPerSecond: 1}, clock)
	l.Take(1 << 62)
	if d := l.Delay(); d <= 0 || d > 2*time.Hour {
		t.Errorf("delay of %v after a huge request", d)
	}
	clock.now = clock.now.Add(-time.Hour) // a clock that goes back takes nothing away
	if d := l.Delay(); d <= 0 || d > 2*time.Hour {
		t.Errorf("delay of %v after the clock went back", d)
	}
	// An idle bucket does not fill beyond its burst.
	l = NewLimiter(Rate{OpsPerSecond: 10, OpsBurst: 5}, clock)
	clock.now = clock.now.Add(time.Hour)
	n := 0
	for l.Delay() == 0 {
		l.Take(0)
		n++
	}
	if n != 5 {
		t.Errorf("%d requests at once after idling, burst is 5", n)
	}
}
