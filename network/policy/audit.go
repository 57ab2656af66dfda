package policy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The bounds of what a guest can make an Audit write and hold.
const (
	denyRate, denyBurst   = 5, 100   // lines a second, and at once
	allowRate, allowBurst = 50, 1000 // flows that were allowed and have ended
	coalesce              = 10 * time.Second
	maxHeld               = 256 // kinds of events that are counted one by one
)

// Audit writes events as lines of JSON, so many a second and no more: of alike denials the first is written at once and the others are
// counted, and so is what is too much. It is safe for use by several goroutines.
type Audit struct {
	w       io.Writer
	sandbox string
	clock   func() time.Time

	mu      sync.Mutex
	budgets [2]budget // of denials, of the rest
	held    map[kindOfEvent]*heldEvent
	order   []kindOfEvent // of held, in the order in which they came
	more    [2]Event      // what found no place in held, by the same index
	err     error         // the first of w
}

// kindOfEvent is what alike events have in common.
type kindOfEvent struct {
	action      Action
	protocol    Protocol
	destination netip.AddrPort
	name, rule  string
}

// heldEvent counts events since the last line, if any were.
type heldEvent struct {
	sum Event // Count is 0 for none
	due time.Time
}

// budget is a token bucket of lines.
type budget struct {
	rate, burst float64
	tokens      float64
	at          time.Time
}

func (b *budget) take(now time.Time) bool {
	b.tokens = min(b.burst, b.tokens+b.rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// NewAudit returns an Audit that writes to w, each line with one call. clock is time.Now but for tests.
func NewAudit(w io.Writer, sandbox string, clock func() time.Time) *Audit {
	now := clock()
	return &Audit{w: w, sandbox: sandbox, clock: clock, held: map[kindOfEvent]*heldEvent{},
		budgets: [2]budget{{denyRate, denyBurst, denyBurst, now}, {allowRate, allowBurst, allowBurst, now}}}
}

// class is the index of an event's budget.
func (e *Event) class() int {
	if e.Action == Deny {
		return 0
	}
	return 1
}

// Record writes e or counts it. An empty Time is now, and an empty Sandbox that of the Audit.
func (a *Audit) Record(e Event) {
	now := a.clock()
	if e.Time.IsZero() {
		e.Time = now
	}
	if e.Sandbox == "" {
		e.Sandbox = a.sandbox
	}
	e.Count = max(e.Count, 1)
	// The guest's bytes are cut here, for events may be held.
	e.Name, e.Reason = e.Name[:min(len(e.Name), maxEventName+1)], e.Reason[:min(len(e.Reason), maxEventReason+1)]
	a.mu.Lock()
	defer a.mu.Unlock()
	k := kindOfEvent{e.Action, e.Protocol, e.Destination, e.Name, e.Rule}
	h := a.held[k]
	if h == nil && a.budgets[e.class()].take(now) {
		a.write(e)
		if e.Action != Deny || len(a.held) >= maxHeld {
			return
		}
		e.Count = 0
	}
	switch {
	case h != nil:
		h.add(e)
	case len(a.held) < maxHeld:
		h = &heldEvent{due: now.Add(coalesce)}
		if e.Count > 0 {
			h.add(e)
		}
		a.held[k], a.order = h, append(a.order, k)
	default:
		m := &a.more[e.class()]
		if m.Count == 0 {
			*m = Event{Time: e.Time, Sandbox: e.Sandbox, Action: e.Action, Rule: "more", Reason: "too many different events to name each"}
		}
		m.Sent, m.Received, m.Count = m.Sent+e.Sent, m.Received+e.Received, m.Count+e.Count
	}
}

// add counts e: the line will have the time of the first, the sums of bytes and times, and the rest of the last.
func (h *heldEvent) add(e Event) {
	if h.sum.Count > 0 {
		e.Time = h.sum.Time
	}
	e.Sent, e.Received, e.Duration, e.Count = e.Sent+h.sum.Sent, e.Received+h.sum.Received, e.Duration+h.sum.Duration, e.Count+h.sum.Count
	h.sum = e
}

// Flush writes the lines whose time has come, as far as the rate allows; with all, everything. Its owner calls it about once a
// second, and with all at the end. It returns the first error that the writer ever had.
func (a *Audit) Flush(all bool) error {
	now := a.clock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.order = slices.DeleteFunc(a.order, func(k kindOfEvent) bool {
		h := a.held[k]
		if !all && now.Before(h.due) {
			return false
		}
		if h.sum.Count > 0 {
			if !all && !a.budgets[h.sum.class()].take(now) {
				return false
			}
			a.write(h.sum)
		}
		delete(a.held, k)
		return true
	})
	for i := range a.more {
		if a.more[i].Count > 0 && (all || a.budgets[i].take(now)) {
			a.write(a.more[i])
			a.more[i] = Event{}
		}
	}
	return a.err
}

func (a *Audit) write(e Event) {
	b, err := json.Marshal(e)
	if err == nil {
		_, err = a.w.Write(append(b, '\n'))
	}
	if err != nil && a.err == nil {
		a.err = fmt.Errorf("write audit line: %w", err)
	}
}
