package api

import (
	"io"

	"spore/internal/wire"
)

// layout goes in front of every message, so that a VMM and a supervisor of different builds refuse each other's. TestLayout says what
// it has to be.
const layout = 0x6f01e0fd

// Send sends what v points to: a Config, a Request or a Message.
func Send(w io.Writer, v any) error { return wire.WriteValue(w, layout, v) }

// Receive receives one of those into what v points to, which must be zero. It returns io.EOF when the stream ends between two.
func Receive(r io.Reader, v any) error { return wire.ReadValue(r, layout, v) }
