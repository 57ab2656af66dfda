package policy

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"
)

// Event is one line of the audit log: a flow that has ended, or a flow or question that was denied.
type Event struct {
	Time     time.Time
	Sandbox  string
	Action   Action // Allow or Deny
	Protocol Protocol
	// Destination is the zero value for a question to the resolver. ICMP's port is 0.
	Destination netip.AddrPort
	// Name is what the guest said or asked for; it may be any bytes, and is escaped and cut when written.
	Name string
	// Rule and Reason are a Verdict's.
	Rule, Reason string
	// Sent and Received count bytes of payload from and to the guest.
	Sent, Received uint64
	Duration       time.Duration
	// Count is how many alike events the line stands for; 0 is 1.
	Count uint64
}

// The longest texts of a line, in bytes before JSON's own escapes.
const (
	maxEventName   = 255
	maxEventReason = 512
)

// line is an event in the order of its fields in JSON, which is part of the format.
type line struct {
	Time        string   `json:"time"`
	Sandbox     string   `json:"sandbox"`
	Action      Action   `json:"action"`
	Protocol    Protocol `json:"protocol"`
	Destination string   `json:"destination,omitempty"`
	Name        string   `json:"name,omitempty"`
	Rule        string   `json:"rule"`
	Reason      string   `json:"reason,omitempty"`
	Sent        uint64   `json:"sent"`
	Received    uint64   `json:"received"`
	Duration    int64    `json:"duration_ms"`
	Count       uint64   `json:"count"`
}

// MarshalJSON writes the event as one object, its fields always in the same order. Whatever the guest had a hand in is plain ASCII
// without control characters, so that no line ends early and no terminal obeys it.
func (e Event) MarshalJSON() ([]byte, error) {
	l := line{
		Time: e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), Sandbox: printable(e.Sandbox, maxEventName), Action: e.Action, Protocol: e.Protocol,
		Name: printable(e.Name, maxEventName), Rule: printable(e.Rule, maxEventReason), Reason: printable(e.Reason, maxEventReason),
		Sent: e.Sent, Received: e.Received, Duration: e.Duration.Milliseconds(), Count: max(e.Count, 1),
	}
	switch {
	case !e.Destination.IsValid():
	case e.Destination.Port() == 0:
		l.Destination = e.Destination.Addr().WithZone("").String()
	default:
		l.Destination = netip.AddrPortFrom(e.Destination.Addr().WithZone(""), e.Destination.Port()).String()
	}
	return json.Marshal(l)
}

// printable is s with every byte that is not printable ASCII, and the backslash, as \xNN, cut to at most limit bytes of s.
func printable(s string, limit int) string {
	const hex = "0123456789abcdef"
	cut := len(s) > limit
	if cut {
		s = s[:limit]
	}
	plain := func(c byte) bool { return c >= ' ' && c < 0x7f && c != '\\' }
	clean := !cut
	for i := range len(s) {
		clean = clean && plain(s[i])
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.WriteString(`\x` + string([]byte{hex[c>>4], hex[c&15]}))
		}
	}
	if cut {
		b.WriteString("...")
	}
	return b.String()
}
