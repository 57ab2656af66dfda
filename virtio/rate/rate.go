// Package rate bounds a device with token buckets: bytes and operations a second.
package rate

import (
	"sync"
	"time"
)

// Rate bounds a device with two token buckets. The zero value is no bound; a burst of 0 is one second's worth.
// Values below 0 are not valid.
type Rate struct {
	BytesPerSecond int64
	BytesBurst     int64 // bytes
	OpsPerSecond   int64 // requests of any type, or frames
	OpsBurst       int64 // of those
}

// Valid reports whether no value of r is negative.
func (r Rate) Valid() bool {
	return r.BytesPerSecond >= 0 && r.BytesBurst >= 0 && r.OpsPerSecond >= 0 && r.OpsBurst >= 0
}

// Clock is the time a rate limit goes by.
type Clock interface {
	Now() time.Time
	After(time.Duration) <-chan time.Time
}

// System is the machine's Clock.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now() }

// After implements Clock.
func (System) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Limiter is both buckets of a device. A request is let through when each bucket holds at least one token, and then
// takes what it costs, into debt if need be: so no chain is ever taken off the ring and then held, and over any
// time the mean is exact, with at most one request more than the burst.
type Limiter struct {
	clock Clock
	mu    sync.Mutex
	bytes bucket
	ops   bucket
}

// NewLimiter returns nil when r, which must be valid, bounds nothing.
func NewLimiter(r Rate, clock Clock) *Limiter {
	if r.BytesPerSecond == 0 && r.OpsPerSecond == 0 {
		return nil
	}
	now := clock.Now()
	return &Limiter{
		clock: clock,
		bytes: newBucket(r.BytesPerSecond, r.BytesBurst, now),
		ops:   newBucket(r.OpsPerSecond, r.OpsBurst, now),
	}
}

// Delay is how long the next request must wait; 0 is not at all.
func (l *Limiter) Delay() time.Duration {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.bytes.delay(now), l.ops.delay(now))
}

// Take charges one request of n bytes.
func (l *Limiter) Take(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes.tokens -= float64(n)
	l.ops.tokens--
}

// bucket holds tokens; a rate of 0 is no bound.
type bucket struct {
	rate, burst, tokens float64
	last                time.Time // of the last refill
}

func newBucket(rate, burst int64, now time.Time) bucket {
	if burst == 0 {
		burst = rate
	}
	return bucket{float64(rate), float64(burst), float64(burst), now}
}

// delay refills the bucket and returns the time until it holds a token.
func (b *bucket) delay(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.burst, b.tokens+b.rate*d.Seconds())
		b.last = now
	}
	if b.tokens >= 1 {
		return 0
	}
	// Rounded up, so that the wait is never in vain, and bounded, so that it cannot overflow.
	wait := (1 - b.tokens) / b.rate
	return time.Duration(min(wait, 3600)*float64(time.Second)) + time.Microsecond
}
