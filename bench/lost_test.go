package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"spore/agent"
)

// TestAnew loses guests: one that was lost is begun anew, no more than guestTries are, and what is wrong for another reason is said at once.
func TestAnew(t *testing.T) {
	gone, hung, wrong := fmt.Errorf("exec: %w", agent.ErrLost), fmt.Errorf("setup: %w", context.DeadlineExceeded), errors.New("wrong")
	for _, c := range []struct {
		name        string
		ends        []error // of the attempts
		want        error
		calls, lost int
	}{
		{"none lost", []error{nil}, nil, 1, 0},
		{"one lost", []error{gone, nil}, nil, 2, 1},
		{"one lost, one that never answered", []error{gone, hung, nil}, nil, 3, 2},
		{"all lost", []error{gone, gone, hung, nil}, hung, 3, 3},
		{"another error", []error{wrong, nil}, wrong, 1, 0},
		{"another error after one lost", []error{gone, wrong, nil}, wrong, 2, 1},
	} {
		r, calls := newResults(), 0
		err := r.anew("spore", func() error {
			calls++
			return c.ends[calls-1]
		})
		if err != c.want || calls != c.calls || r.Lost["spore"] != c.lost {
			t.Errorf("%s: %v after %d attempts, %d lost; want %v, %d, %d", c.name, err, calls, r.Lost["spore"], c.want, c.calls, c.lost)
		}
	}
}
