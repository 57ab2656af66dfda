// Package timing cuts a stretch of work into named steps.
package timing

import (
	"time"

	"golang.org/x/sys/unix"
)

// Step is one named part and how long it took.
type Step struct {
	Name     string
	Duration time.Duration
}

// Clock collects steps. Make one with Start; it is for one goroutine.
type Clock struct {
	began, last time.Time
	steps       []Step
}

// Start begins the first step now.
func Start() *Clock {
	now := time.Now()
	return &Clock{began: now, last: now}
}

// Done ends the current step under that name and begins the next.
func (c *Clock) Done(name string) {
	now := time.Now()
	c.steps = append(c.steps, Step{name, now.Sub(c.last)})
	c.last = now
}

// Steps returns the steps so far, in order.
func (c *Clock) Steps() []Step { return c.steps }

// Total is the time since Start.
func (c *Clock) Total() time.Duration { return time.Since(c.began) }

// Monotonic is CLOCK_MONOTONIC in nanoseconds: the same for every process of the host. 0 if the host has none.
func Monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}
