// Package control serves the control socket of a VMM: requests in, one reply each, in order, and the two events
// of a machine's life. It knows the machine only by what requests ask of it.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"spore/vmm/api"
)

// Machine is what requests act on.
type Machine interface {
	Pause(context.Context) error
	Resume(context.Context) error
	Stop(detail string) // the machine ends; safe at any time
	Stats() map[string]map[string]uint64
	SetBalloon(bytes int64) error
	Hot(to, pagemap *os.File) error
	Track()
	Stopped() time.Duration // the last pause
	// Save pauses, and writes a snapshot to files that stay the caller's.
	Save(ctx context.Context, state, memory, pagemap *os.File, live, goOn bool) (api.Saved, error)
}

// patience bounds a pause or resume. A device that takes longer is broken, and the supervisor hears so. A snapshot takes as long
// as it takes to write the memory.
const (
	patience     = 30 * time.Second
	savePatience = 10 * time.Minute
)

// Conn is a control socket as the server sees it.
type Conn interface {
	io.ReadWriter
	// Files returns the descriptors that came with what was read since the last call. They are the caller's.
	Files() []*os.File
}

// Server speaks for one machine on one connection.
type Server struct {
	conn Conn
	log  *slog.Logger

	mu   sync.Mutex // one message at a time
	last bool       // the exit event is out; nothing may follow it
}

// New makes a Server on conn. A nil log is silent.
func New(conn Conn, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{conn: conn, log: log}
}

// Event sends an event. After EventExit nothing more is sent.
func (s *Server) Event(e api.Event) error { return s.send(api.Message{Event: &e}) }

func (s *Server) send(m api.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last {
		return nil
	}
	s.last = m.Event != nil && m.Event.Kind == api.EventExit
	return api.Send(s.conn, &m)
}

// Await receives the request that a shell waits for. It returns io.EOF when the connection ends first.
func (s *Server) Await() (api.Request, []*os.File, error) {
	var r api.Request
	if err := api.Receive(s.conn, &r); err != nil {
		return r, nil, err
	}
	files := s.conn.Files()
	if r.Op != api.OpWake || r.Config == nil {
		return r, files, fmt.Errorf("a shell was asked to %q", r.Op)
	}
	return r, files, nil
}

// Serve answers requests, one at a time, until the connection ends; then it stops the machine, because nobody is left
// to do it. It returns what ended the connection, nil for an orderly close.
func (s *Server) Serve(ctx context.Context, m Machine) error {
	for {
		var r api.Request
		if err := api.Receive(s.conn, &r); err != nil {
			m.Stop("control socket closed")
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read control request: %w", err)
		}
		files := s.conn.Files()
		reply := s.answer(ctx, m, r, files)
		for _, f := range files {
			f.Close()
		}
		if err := s.send(api.Message{Reply: &reply}); err != nil {
			m.Stop("control socket broken")
			return fmt.Errorf("send control reply: %w", err)
		}
		if r.Op == api.OpStop {
			m.Stop("asked to stop") // after the reply, because the exit event is the last message
		}
	}
}

func (s *Server) answer(ctx context.Context, m Machine, r api.Request, files []*os.File) api.Reply {
	limit := patience
	if r.Op == api.OpSave {
		limit = savePatience
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	reply := api.Reply{ID: r.ID}
	var err error
	switch r.Op {
	case api.OpPause:
		err = m.Pause(ctx)
	case api.OpResume:
		err = m.Resume(ctx)
		reply.Stopped = m.Stopped().Nanoseconds()
	case api.OpStop:
	case api.OpStats:
		reply.Counters = m.Stats()
	case api.OpBalloon:
		err = m.SetBalloon(r.Bytes)
	case api.OpTrack:
		m.Track()
	case api.OpHot:
		if err = want(files, api.HotFiles); err == nil {
			err = m.Hot(files[0], files[1])
		}
	case api.OpSave:
		reply.Saved, err = save(ctx, m, r, files)
	default:
		err = fmt.Errorf("unknown request %q", r.Op)
	}
	if err != nil {
		reply.Error = err.Error()
		s.log.Warn("control request refused", "op", r.Op, "error", err)
	}
	return reply
}

func want(files []*os.File, n int) error {
	if len(files) != n {
		return fmt.Errorf("%d descriptors came with the request, want %d", len(files), n)
	}
	return nil
}

func save(ctx context.Context, m Machine, r api.Request, files []*os.File) (*api.Saved, error) {
	if err := want(files, api.SaveFiles); err != nil {
		return nil, err
	}
	saved, err := m.Save(ctx, files[0], files[1], files[2], r.Live, r.GoOn)
	if err != nil {
		return nil, err
	}
	return &saved, nil
}
