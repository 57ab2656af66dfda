package agent

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText is how much of a text of the guest's is kept, in bytes. It is enough for a path and a reason.
const maxText = 512

// plain makes the guest's text fit to be shown, logged or put into one line of anything: printable characters
// only, so no control sequence and no second line, and not many of them (AG-03).
func plain(s string) string {
	cut := len(s) > maxText
	if cut {
		s = s[:maxText]
	}
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "…"
	}
	return s
}

// judge makes a Failure of the guest's one that may be passed on.
func (f *Failure) judge() {
	f.Text = plain(f.Text)
	if f.Code != 126 && f.Code != 127 {
		f.Code = 0
	}
}

// judge bounds what an agent can claim of an end.
func (e *Exit) judge() error {
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > 64 || e.Duration < 0 || e.User < 0 || e.System < 0 || e.MaxRSS < 0 {
		return fmt.Errorf("%w: exit code %d, signal %d", ErrFrame, e.Code, e.Signal)
	}
	return nil
}

// judge bounds what an agent can claim of its guest.
func (s *Stats) judge() error {
	for _, n := range []int64{
		int64(s.Uptime), int64(s.CPU), s.MemoryTotal, s.MemoryAvailable, s.MemoryUsed, s.Pids, s.DiskTotal, s.DiskFree,
	} {
		if n < 0 {
			return fmt.Errorf("%w: negative figure", ErrFrame)
		}
	}
	if len(s.Load) > 64 || strings.Trim(s.Load, "0123456789. ") != "" {
		return fmt.Errorf("%w: load is not numbers", ErrFrame)
	}
	return nil
}
