package console

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	start := time.Unix(1000, 0)
	b := newBucket(1000, 100, start)
	for i, step := range []struct {
		after time.Duration // since start
		ask   int
		want  int
	}{
		{0, 60, 60}, {0, 60, 40}, {0, 1, 0}, // the burst
		{time.Millisecond, 10, 1},
		{time.Millisecond + 500*time.Microsecond, 1, 0}, // half a token is kept …
		{2 * time.Millisecond, 10, 1},                   // … and is a whole one here
		{time.Millisecond, 10, 0},                       // back in time
		{3 * time.Millisecond, 10, 1},
		{time.Hour, 1000, 100}, // no more than the burst
		{time.Hour, 1, 0},
	} {
		if got := b.take(start.Add(step.after), step.ask); got != step.want {
			t.Errorf("step %d: took %d, want %d", i, got, step.want)
		}
	}
}

// TestBucketShortSteps shows that steps shorter than a token lose nothing.
func TestBucketShortSteps(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBucket(outputRate, outputBurst, now)
	b.take(now, outputBurst)
	total := 0
	for range 100_000 {
		now = now.Add(700 * time.Nanosecond)
		total += b.take(now, 10)
	}
	if want := 70 * outputRate / 1000; total < want-1 || total > want {
		t.Errorf("%d bytes in 70 ms, want %d", total, want)
	}
}
