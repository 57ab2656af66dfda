package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/timing"
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
			m.runs.Store(timing.Monotonic())
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

// errGone says that the VMM ended before it answered.
var errGone = errors.New("the VMM is gone")

// request sends one control request, with descriptors that stay the caller's, and waits for its reply.
func (m *machine) request(ctx context.Context, r api.Request, files ...*os.File) (api.Reply, error) {
	c := make(chan api.Reply, 1)
	m.mu.Lock()
	m.lastID++
	r.ID = m.lastID
	m.waiting[r.ID] = c
	err := api.Send(&rights{m.control, files}, &r)
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

// rights writes to a socket and gives descriptors along with the first byte.
type rights struct {
	socket *os.File
	files  []*os.File
}

func (r *rights) Write(p []byte) (int, error) {
	if len(r.files) == 0 {
		return r.socket.Write(p)
	}
	var fds []int
	for _, f := range r.files {
		fds = append(fds, int(f.Fd()))
	}
	raw, err := r.socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var inner error
	if err := raw.Write(func(fd uintptr) bool {
		for {
			n, inner = unix.SendmsgN(int(fd), p, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			if inner != unix.EINTR {
				return inner != unix.EAGAIN
			}
		}
	}); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, os.NewSyscallError("sendmsg", inner)
	}
	r.files = nil
	rest, err := r.socket.Write(p[n:])
	return n + rest, err
}
