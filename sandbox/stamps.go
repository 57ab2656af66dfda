package sandbox

import (
	"sync"
	"time"

	"spore/internal/timing"
)

// Stamps are the moments of a start, in nanoseconds since it was asked for (t0). A moment that was not reached is 0.
type Stamps struct {
	VMM     int64 `json:"t1_vmm_ns,omitempty"`           // the VMM is there
	Running int64 `json:"t2_running_ns,omitempty"`       // its vCPUs run
	Exit    int64 `json:"t3_first_exit_ns,omitempty"`    // the guest's first instruction that the VMM had to answer
	Agent   int64 `json:"t4_agent_ns,omitempty"`         // the agent answers, and the guest is this sandbox's
	Output  int64 `json:"t5_first_output_ns,omitempty"`  // the first byte that the command printed
	Ended   int64 `json:"t6_command_ended_ns,omitempty"` // the command ended
	Gone    int64 `json:"t7_all_returned_ns,omitempty"`  // nothing is left of the machine
}

// watch takes the moments of one start.
type watch struct {
	began int64 // by CLOCK_MONOTONIC, as the VMM's own stamps

	mu     sync.Mutex
	stamps Stamps
}

func newWatch() *watch { return &watch{began: timing.Monotonic()} }

// note sets a moment to now, unless it has been.
func (w *watch) note(moment func(*Stamps) *int64) { w.at(timing.Monotonic(), moment) }

// at is note for a moment that has been taken elsewhere; 0 is none.
func (w *watch) at(when int64, moment func(*Stamps) *int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := moment(&w.stamps); *m == 0 && when > w.began {
		*m = when - w.began
	}
}

func (w *watch) get() Stamps {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stamps
}

// firstByte notes the first byte that is written to it.
type firstByte struct{ *watch }

func (f firstByte) Write(p []byte) (int, error) {
	f.note(func(s *Stamps) *int64 { return &s.Output })
	return len(p), nil
}

// Stamps returns the moments of a start that this very value supervised.
func (sb *Sandbox) Stamps() Stamps { return sb.lastStamps }

// Moments returns the moments that were reached, by name, in order.
func (s Stamps) Moments() []Step {
	var all []Step
	for _, m := range []struct {
		name string
		at   int64
	}{
		{"t1 VMM there", s.VMM}, {"t2 vCPUs running", s.Running}, {"t3 first guest exit", s.Exit}, {"t4 agent answers", s.Agent},
		{"t5 first output byte", s.Output}, {"t6 command ended", s.Ended}, {"t7 all returned", s.Gone},
	} {
		if m.at > 0 {
			all = append(all, Step{m.name, time.Duration(m.at)})
		}
	}
	return all
}
