package main

import (
	"bytes"
	"testing"
)

// CON-02: what a guest prints does not act on the operator's terminal.
func TestCON02Screen(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"text", "plain\ttext\n", "plain\ttext\n"},
		{"umlauts", "Grüße, 世界\n", "Grüße, 世界\n"},
		{"window title", "\x1b]0;owned\x07", "^[]0;owned^G"},
		{"answerback", "\x1b[6n", "^[[6n"},
		{"C1", "\u009b31m", "M-^[31m"},
		{"overprinting", "good\rbad", "good^Mbad"},
		{"line ends", "a\r\nb\r\n", "a\nb\n"},
		{"broken UTF-8", "a\xffb", "a\ufffdb"},
		{"backspace and delete", "a\b\x7f", "a^H^?"},
	} {
		for split := range len(test.in) { // whole, and cut at every place
			var b bytes.Buffer
			s := &screen{to: &b}
			s.Write([]byte(test.in[:split]))
			if n, err := s.Write([]byte(test.in[split:])); n != len(test.in)-split || err != nil {
				t.Fatalf("%s: %d, %v", test.name, n, err)
			}
			if b.String() != test.want {
				t.Errorf("%s, cut at %d: %q, want %q", test.name, split, b.String(), test.want)
			}
		}
	}
}
