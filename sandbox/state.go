package sandbox

import (
	"fmt"
	"time"
)

// Status is where a sandbox is in its life.
//
//	created ──► starting ──► running ──► exited
//	                │                     │ ▲
//	                └─────────────────────┼─┘
//	            starting ◄────────────────┘   (named sandboxes may start again)
type Status string

// The statuses.
const (
	Created  Status = "created"
	Starting Status = "starting"
	Running  Status = "running"
	Stopped  Status = "exited"
)

var next = map[Status][]Status{
	Created:  {Starting},
	Starting: {Running, Stopped},
	Running:  {Stopped},
	Stopped:  {Starting},
}

// StateError says that a sandbox is not where the request needs it to be.
type StateError struct {
	Ref  string // as the user wrote it
	Is   Status
	Want string // in words, with the remedy
}

func (e *StateError) Error() string { return fmt.Sprintf("sandbox %s is %s: %s", e.Ref, e.Is, e.Want) }

// State is the part of the record that changes.
type State struct {
	Status     Status    `json:"status"`
	Supervisor int       `json:"supervisor_pid,omitempty"`
	VMM        int       `json:"vmm_pid,omitempty"`
	Started    time.Time `json:"started,omitzero"`
	Ended      time.Time `json:"ended,omitzero"`
	Outcome    Outcome   `json:"result,omitzero"`
	Steps      []Step    `json:"steps,omitempty"`    // where the start-up time went
	Paused     bool      `json:"paused,omitempty"`   // it stands still until it is resumed
	Snapshot   string    `json:"snapshot,omitempty"` // id of the snapshot that it was at last: the parent of the next
	From       string    `json:"from,omitempty"`     // the dormant machine that it wakes from when it is started next
	Main       uint64    `json:"main,omitempty"`     // number of the process there that is its command; 0 starts Config.Args

	Network *Connected `json:"connected,omitempty"` // how it is connected; nil when it does not run, or has no network
}

// Step is one named part of starting up.
type Step struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
}

// move changes the status, or panics: a wrong step is our own mistake, since each caller holds the lock.
func (s *State) move(to Status) {
	for _, ok := range next[s.Status] {
		if ok == to {
			s.Status = to
			return
		}
	}
	panic(fmt.Sprintf("bug: sandbox goes from %s to %s", s.Status, to))
}
