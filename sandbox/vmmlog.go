package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
)

// maxLogLine bounds one line of the VMM's log, in bytes.
const maxLogLine = 8 << 10

// relayLog passes the VMM's JSON log lines on. The VMM may be in the guest's hands, so a line is bounded, its
// level is capped and its text is an attribute, never a format.
func relayLog(log *slog.Logger, r io.Reader) {
	in := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, tooLong, err := in.ReadLine()
		if err != nil {
			return
		}
		if tooLong {
			continue // the pieces of an overlong line are dropped, the rest is read on
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
