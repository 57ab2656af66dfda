package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spore/network/policy"
)

func TestEventLine(t *testing.T) {
	e := policy.Event{Time: time.Date(2026, 11, 27, 8, 0, 0, 5e6, time.UTC), Sandbox: "0123456789ab", Action: policy.Deny, Protocol: policy.TCP,
		Destination: netip.MustParseAddrPort("[2001:db8::1]:443"), Name: "evil.example.com", Rule: "default:unlisted", Reason: "no rule allows it",
		Sent: 517, Received: 0, Duration: 1500 * time.Millisecond}
	got, err := json.Marshal(e)
	want := `{"time":"2026-11-27T08:00:00.005Z","sandbox":"0123456789ab","action":"deny","protocol":"tcp","destination":"[2001:db8::1]:443","name":"evil.example.com",` +
		`"rule":"default:unlisted","reason":"no rule allows it","sent":517,"received":0,"duration_ms":1500,"count":1}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\n%s", err, got, want)
	}
}

// TestAG03NoLineIsForged: whatever the guest says stays within its field, in printable ASCII.
func TestAG03NoLineIsForged(t *testing.T) {
	for _, name := range []string{"a\n{\"time\":\"x\"}", "\x1b[2J\x1b]0;title\a", "\"},{", "\\", "\x7f\x80\xff", "\u202egro.elpmaxe", "\u2028\u0085", "<script>", strings.Repeat("a\n", 1<<20)} {
		var b bytes.Buffer
		a := policy.NewAudit(&b, "0123456789ab", newClock().Now)
		a.Record(policy.Event{Action: policy.Deny, Protocol: policy.DNS, Name: name, Rule: "default:name", Reason: name})
		if err := a.Flush(true); err != nil {
			t.Fatal(err)
		}
		line := b.String()
		if strings.Count(line, "\n") != 1 || len(line) > 8192 {
			t.Errorf("%.20q: %d lines, %d bytes", name, strings.Count(line, "\n"), len(line))
		}
		for _, c := range []byte(strings.TrimSuffix(line, "\n")) {
			if c < ' ' || c >= 0x7f {
				t.Errorf("%.20q: byte %#x in the line", name, c)
			}
		}
		var fields map[string]any
		if err := json.Unmarshal(b.Bytes(), &fields); err != nil || fields["rule"] != "default:name" {
			t.Errorf("%.20q: %v, %v", name, err, fields)
		}
	}
}

// lines are the counts of the lines that were written, with their names.
func lines(t *testing.T, b *bytes.Buffer) (out []string) {
	t.Helper()
	for line := range strings.Lines(b.String()) {
		var e struct {
			Name, Rule string
			Count      int
			Sent       int
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s%s*%d/%d", e.Name, strings.TrimPrefix(e.Rule, "default:unlisted"), e.Count, e.Sent))
	}
	b.Reset()
	return out
}

func TestAuditCoalesces(t *testing.T) {
	var b bytes.Buffer
	c := newClock()
	a := policy.NewAudit(&b, "0123456789ab", c.Now)
	deny := func(name string, sent uint64) {
		a.Record(policy.Event{Action: policy.Deny, Protocol: policy.TCP, Name: name, Rule: "default:unlisted", Sent: sent})
	}
	flush := func(all bool) []string {
		if err := a.Flush(all); err != nil {
			t.Fatal(err)
		}
		return lines(t, &b)
	}
	deny("a", 1)
	deny("a", 2)
	deny("a", 3)
	deny("b", 4)
	if got := fmt.Sprint(flush(false)); got != "[a*1/1 b*1/4]" {
		t.Errorf("at once: %s", got)
	}
	c.now = c.now.Add(10 * time.Second)
	if got := fmt.Sprint(flush(false)); got != "[a*2/5]" {
		t.Errorf("after ten seconds: %s", got)
	}
	deny("a", 6)
	if got := fmt.Sprint(flush(true)); got != "[a*1/6]" {
		t.Errorf("afterwards: %s", got)
	}
	deny("a", 7)
	deny("a", 8)
	if got := fmt.Sprint(flush(true)); got != "[a*1/7 a*1/8]" {
		t.Errorf("at the end: %s", got)
	}
}

// TestAuditIsBounded: a guest that makes as many different denials as it can writes few lines, and every denial is counted.
func TestAuditIsBounded(t *testing.T) {
	for _, action := range []policy.Action{policy.Deny, policy.Allow} {
		var b bytes.Buffer
		c := newClock()
		a := policy.NewAudit(&b, "0123456789ab", c.Now)
		const seconds, each = 60, 2000
		written, counted := 0, 0
		count := func() {
			for line := range strings.Lines(b.String()) {
				var e struct{ Count int }
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				written++
				counted += e.Count
			}
			b.Reset()
		}
		for s := range seconds {
			for i := range each {
				a.Record(policy.Event{Action: action, Protocol: policy.TCP, Name: fmt.Sprint(s, "-", i), Rule: "r"})
			}
			c.now = c.now.Add(time.Second)
			a.Flush(false)
			count()
		}
		limit := map[policy.Action]int{policy.Deny: 100 + 5*seconds, policy.Allow: 1000 + 50*seconds}[action]
		if written > limit {
			t.Errorf("%s: %d lines in %d s, at most %d", action, written, seconds, limit)
		}
		a.Flush(true)
		count()
		if counted != seconds*each {
			t.Errorf("%s: %d of %d are counted", action, counted, seconds*each)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestAuditError(t *testing.T) {
	a := policy.NewAudit(full{}, "x", newClock().Now)
	a.Record(policy.Event{})
	if err := a.Flush(true); err == nil || !strings.Contains(err.Error(), "write audit line: no space left") {
		t.Errorf("%v", err)
	}
}
