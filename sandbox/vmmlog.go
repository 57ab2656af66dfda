package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"
)

// Bounds on the VMM's log: of a line, in bytes, and of lines in a second. The pipe holds no more than the kernel's 64 KiB,
// and the VMM drops what does not fit.
const (
	maxLogLine = 8 << 10
	maxLogRate = 100
)

// relayLog passes the VMM's JSON log lines on. The VMM may be in the guest's hands, so a line is bounded, its
// level is capped, its text is an attribute and never a format, and a flood of them is counted and not passed on.
func relayLog(log *slog.Logger, r io.Reader, now func() time.Time) {
	in := bufio.NewReaderSize(r, maxLogLine)
	var second time.Time
	lines, dropped := 0, 0
	for {
		line, tooLong, err := in.ReadLine()
		if t := now(); t.Sub(second) >= time.Second || err != nil {
			if dropped > 0 {
				log.Warn("vmm: log lines dropped", "lines", dropped)
			}
			second, lines, dropped = t, 0, 0
		}
		if err != nil {
			return
		}
		if lines++; tooLong || lines > maxLogRate {
			dropped++ // of an overlong line the pieces are dropped, and the rest is read on
			continue
		}
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Err   string `json:"err"`
		}
		if json.Unmarshal(line, &entry) != nil {
			continue
		}
		level := slog.LevelDebug
		if entry.Level == "ERROR" || entry.Level == "WARN" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "vmm", "msg", entry.Msg, "err", entry.Err)
	}
}
