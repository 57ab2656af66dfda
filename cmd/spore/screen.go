package main

import (
	"io"
	"os"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func rawFlag() cli.Flag {
	return &cli.BoolFlag{Name: "raw", Usage: "let the guest's output act on this terminal; otherwise control characters are shown, not sent"}
}

// shown is where a guest's output goes: to a file or pipe as it is, to a terminal of ours with nothing in it that the
// terminal would act on (CON-02), unless the user asks for that with --raw or gives the guest the terminal with --tty.
func shown(c *cli.Context, f *os.File) io.Writer {
	if c.Bool("raw") || c.Bool("tty") || !term.IsTerminal(int(f.Fd())) {
		return f
	}
	return &screen{to: f}
}

// screen makes control characters visible: ^[ for escape, as cat -v does. Line feed, carriage return before it and
// tabulator pass. It is for one goroutine.
type screen struct {
	to   io.Writer
	part []byte // the beginning of a character, at most three bytes
}

func (s *screen) Write(p []byte) (int, error) {
	in := append(s.part, p...)
	out := make([]byte, 0, len(in)+16)
	for len(in) > 0 {
		if !utf8.FullRune(in) || len(in) == 1 && in[0] == '\r' { // what it is shows with the next byte
			break
		}
		r, n := utf8.DecodeRune(in)
		switch {
		case r == '\n' || r == '\t':
			out = append(out, in[:n]...)
		case r == '\r' && len(in) > 1 && in[1] == '\n':
		case r < 0x20 || r == 0x7f:
			out = append(out, '^', byte(r)^0x40)
		case r >= 0x80 && r < 0xa0: // C1, which some terminals obey
			out = append(out, "M-^"...)
			out = append(out, byte(r)&^0x80^0x40)
		default:
			out = append(out, string(r)...) // a broken byte becomes the replacement character
		}
		in = in[n:]
	}
	s.part = append([]byte(nil), in...)
	if _, err := s.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
