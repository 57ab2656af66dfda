package vmm

import (
	"errors"
	"fmt"
)

// State is where a machine is in its life.
//
//	New ──► paused ◄──► running
//	           │            │
//	           └──► stopped ◄┘
type State uint8

// The states.
const (
	Paused  State = iota // vCPUs parked, devices quiet
	Running              // vCPUs in the guest
	Stopped              // ended, for good
)

var stateNames = [...]string{"paused", "running", "stopped"}

// String returns the state's name.
func (s State) String() string { return stateNames[s] }

var next = map[State][]State{
	Paused:  {Running, Stopped},
	Running: {Paused, Stopped},
	Stopped: {},
}

// ErrState is matched by the error of a request that the machine's state does not allow.
var ErrState = errors.New("wrong state")

// to checks the step from s to t.
func (s State) to(t State) error {
	for _, n := range next[s] {
		if n == t {
			return nil
		}
	}
	return fmt.Errorf("machine is %s, cannot become %s: %w", s, t, ErrState)
}
