package console

import "time"

// bucket is a token bucket of bytes. It never waits: who finds too little in it drops the rest.
type bucket struct {
	rate, burst int64     // bytes a second, and at most in the bucket; not 0
	tokens      int64     // bytes
	part        int64     // of the next token, in 1/1e9
	at          time.Time // up to which time tokens were added
}

// newBucket makes a full bucket. rate is at most 1e9 bytes a second.
func newBucket(rate, burst int64, now time.Time) bucket {
	return bucket{rate: rate, burst: burst, tokens: burst, at: now}
}

// take uses up to n tokens at that time and returns how many there were. Time that is not a whole token yet is
// kept for the next call, so many short calls get what one long call gets. A clock that goes back adds nothing.
func (b *bucket) take(now time.Time, n int) int {
	if passed := now.Sub(b.at); passed >= b.fill() {
		b.tokens, b.part, b.at = b.burst, 0, now
	} else if passed > 0 {
		b.part += int64(passed) * b.rate // below burst tokens, so no overflow
		b.tokens = min(b.burst, b.tokens+b.part/int64(time.Second))
		b.part, b.at = b.part%int64(time.Second), now
	}
	got := min(int64(n), b.tokens)
	b.tokens -= got
	return int(got)
}

// fill is the time in which an empty bucket fills, rounded up.
func (b *bucket) fill() time.Duration {
	return time.Duration((b.burst*int64(time.Second) + b.rate - 1) / b.rate)
}
