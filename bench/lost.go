package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"spore/agent"
)

// guestTries is how often a guest is begun anew that got lost: the emulated host's QEMU loses guests of both kinds
// (docs/testing.md).
const guestTries = 3

// lost reports whether an error means that a guest went away, or never answered.
func lost(err error) bool {
	return errors.Is(err, agent.ErrLost) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// anew calls measure, which starts a guest of that kind and keeps its figures only when it returns nil, again where the guest got lost.
// The results say how many were.
func (r *results) anew(kind string, measure func() error) error {
	for try := 1; ; try++ {
		err := measure()
		if err == nil || !lost(err) {
			return err
		}
		r.Lost[kind]++
		fmt.Fprintf(os.Stderr, "bench: %s: lost the guest, attempt %d of %d: %v\n", kind, try, guestTries, err)
		if try == guestTries {
			return err
		}
	}
}
