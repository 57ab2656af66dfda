package sandbox

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A VMM in the guest's hands floods its log: what is passed on is bounded, and says how much was not.
func TestRelayLogFlood(t *testing.T) {
	var in strings.Builder
	for i := range 10 * maxLogRate {
		fmt.Fprintf(&in, `{"level":"ERROR","msg":"line %d\u001b[2J"}`+"\n", i)
	}
	in.WriteString(strings.Repeat("x", 3*maxLogLine) + "\n")
	var out bytes.Buffer
	relayLog(slog.New(slog.NewTextHandler(&out, nil)), strings.NewReader(in.String()), func() time.Time { return time.Unix(1, 0) })
	if n := strings.Count(out.String(), "msg=vmm "); n != maxLogRate {
		t.Errorf("%d lines passed on, want %d", n, maxLogRate)
	}
	if !strings.Contains(out.String(), "log lines dropped") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("ends with %q", out.String()[out.Len()-200:])
	}
}
