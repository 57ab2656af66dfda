package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"spore/internal/wire"
	"spore/network/api"
)

// control is the supervisor's line to us.
type control struct{ file *os.File }

func newControl(f *os.File) *control { return &control{f} }

func (c *control) event(e api.Event) error { return wire.Write(c.file, api.Message{Event: &e}) }

// fail says why there will be nothing. The supervisor may be gone, and then needs no answer.
func (c *control) fail(err error) { _ = c.event(api.Event{Kind: api.EventFailed, Detail: err.Error()}) }

// serve answers requests until the supervisor hangs up.
func (c *control) serve(m *mediation) error {
	for {
		var r api.Request
		if err := wire.Read(c.file, &r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
		reply := api.Reply{ID: r.ID}
		switch r.Op {
		case api.OpStats:
			s := m.stats()
			reply.Stats = &s
		case api.OpExplain:
			e, err := m.policy.ExplainAddress(m.names, r.Address)
			reply.Explanation = &e
			if err != nil {
				reply.Error, reply.Explanation = err.Error(), nil
			}
		case api.OpReset:
			m.reset()
		default:
			reply.Error = fmt.Sprintf("no such request: %.20q", r.Op)
		}
		if err := wire.Write(c.file, api.Message{Reply: &reply}); err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
	}
}
