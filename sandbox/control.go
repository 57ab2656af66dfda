package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"spore/internal/rights"
	"spore/jailer"
	"spore/vmm/api"
)

// readControl takes replies and events until the socket ends.
func (m *machine) readControl() {
	for {
		var msg api.Message
		if err := api.Receive(m.control, &msg); err != nil {
			return
		}
		switch {
		case msg.Event != nil && msg.Event.Kind == api.EventStarted:
			m.runs.Store(msg.Event.First)
			m.running.Do(func() { m.steps = msg.Event.Steps; close(m.started) })
		case msg.Event != nil && msg.Event.Kind == api.EventExit:
			m.end = *msg.Event
		case msg.Reply != nil:
			m.mu.Lock()
			if c := m.waiting[msg.Reply.ID]; c != nil {
				delete(m.waiting, msg.Reply.ID)
				c <- *msg.Reply
			}
			m.mu.Unlock()
		}
	}
}

// requestWithPages is request for what the VMM must know about its own memory: which pages of it are no file's.
func (m *machine) requestWithPages(ctx context.Context, r api.Request, files ...*os.File) (api.Reply, error) {
	pagemap, err := jailer.Pagemap(m.process.pid())
	if err != nil {
		return api.Reply{}, err
	}
	defer pagemap.Close()
	return m.request(ctx, r, append(files, pagemap)...)
}

// errGone says that the VMM ended before it answered.
var errGone = errors.New("the VMM is gone")

// request sends one control request, with descriptors that stay the caller's, and waits for its reply.
func (m *machine) request(ctx context.Context, r api.Request, files ...*os.File) (api.Reply, error) {
	c := make(chan api.Reply, 1)
	m.mu.Lock()
	m.lastID++
	r.ID = m.lastID
	m.waiting[r.ID] = c
	err := api.Send(&rights.Writer{Socket: m.control, Files: files}, &r)
	m.mu.Unlock()
	if err != nil {
		return api.Reply{}, fmt.Errorf("ask VMM to %s: %w", r.Op, err)
	}
	select {
	case reply := <-c:
		if reply.Error != "" {
			return reply, fmt.Errorf("VMM: %s: %s", r.Op, reply.Error)
		}
		return reply, nil
	case <-m.done:
		return api.Reply{}, fmt.Errorf("ask VMM to %s: %w", r.Op, errGone)
	case <-ctx.Done():
		return api.Reply{}, fmt.Errorf("ask VMM to %s: %w", r.Op, context.Cause(ctx))
	}
}
