// Package session is the inner end of the emulated host's command sessions: it
// serves one port, starting one process after another for the clients that
// come and go on it. The protocol is package frame.
package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"spore/emuhost/frame"
)

// ErrDisconnected is what a Port returns when its client has gone away.
var ErrDisconnected = errors.New("client disconnected")

// Port is one end of a virtio-serial port. Read blocks until bytes are there;
// when a client goes away it returns ErrDisconnected, and the call after that
// blocks until there is a client again. Write returns ErrDisconnected while
// there is no client. Any other error ends the service. Read and Write may be
// called at the same time.
type Port interface {
	io.Reader
	io.Writer
}

// Server serves one port. Fields are set before Serve and not changed.
type Server struct {
	Port Port
	// Configure is called for a Configuration frame; nil refuses them.
	Configure func(frame.Configuration) error
	// Ready says whether processes may be started; nil means always.
	Ready func() bool
	// Sync writes back what is dirty; nil does nothing.
	Sync func()
	// Prepare is called before a process starts; nil does nothing.
	Prepare func(*frame.Start)
	// HangupGrace is how long a session may live on after SIGHUP when its
	// client is gone, before SIGKILL. 0 kills at once.
	HangupGrace time.Duration
	// Log is for what concerns nobody but a developer; nil discards.
	Log *slog.Logger

	out     sync.Mutex // guards tag and buf and keeps frames whole
	tag     uint32
	buf     []byte // of send
	body    []byte
	current *process
}

// Serve serves clients until the port fails, and returns why.
func (s *Server) Serve() error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	r := frame.NewReader(s.Port)
	for {
		f, err := r.Next()
		switch {
		case err == nil && f.Type == frame.TypeHello:
			var n frame.Nonce
			if n, err = frame.ParseHello(f.Payload); err == nil {
				s.greet(r, n)
			}
		case err == nil:
			err = s.handle(f)
		}
		if err == nil {
			continue
		}
		s.Log.Debug("session ends", "cause", err)
		if errors.Is(err, frame.ErrFrame) {
			_ = s.send(frame.TypeError, []byte(err.Error())) // before the exit of what is killed
		}
		s.endSession()
		switch {
		case errors.Is(err, ErrDisconnected):
			r.Reset()
		case errors.Is(err, frame.ErrFrame):
			n, err := r.Hunt(nil)
			if errors.Is(err, ErrDisconnected) {
				r.Reset()
			} else if err != nil {
				return err
			} else {
				s.greet(r, n)
			}
		default:
			return err
		}
	}
}

// greet ends the session before and begins the one named n.
func (s *Server) greet(r *frame.Reader, n frame.Nonce) {
	s.endSession()
	s.out.Lock()
	defer s.out.Unlock()
	s.tag = n.Tag()
	r.SetTag(s.tag)
	_, _ = s.Port.Write(frame.AppendHello(nil, n)) // a client that is gone shows at the next read
}

// endSession kills the process of the session, if any, and waits for it.
func (s *Server) endSession() {
	s.body = nil
	if s.current != nil {
		s.current.hangup(s.HangupGrace)
		s.current = nil
	}
}

// send writes one frame.
func (s *Server) send(t frame.Type, payload []byte) error {
	s.out.Lock()
	defer s.out.Unlock()
	if s.tag == 0 {
		return ErrDisconnected
	}
	s.buf = frame.Append(s.buf[:0], s.tag, t, payload)
	_, err := s.Port.Write(s.buf)
	return err
}

// fail reports an error to the client; the session stays usable.
func (s *Server) fail(err error) error {
	text := err.Error()
	return s.send(frame.TypeError, []byte(text[:min(len(text), 1024)]))
}

// handle acts on a frame of a session. An error ends the session.
func (s *Server) handle(f frame.Frame) error {
	switch f.Type {
	case frame.TypePart, frame.TypeStart, frame.TypeConfigure:
		if len(s.body)+len(f.Payload) > frame.MaxBody {
			return fmt.Errorf("request body: %w", frame.ErrFrame)
		}
		s.body = append(s.body, f.Payload...)
		if f.Type == frame.TypePart {
			return nil
		}
		body := s.body
		s.body = nil
		if f.Type == frame.TypeStart {
			return s.start(body)
		}
		return s.configure(body)
	case frame.TypeSync:
		if s.Sync != nil {
			s.Sync()
		}
		return s.send(frame.TypeSync, nil)
	}
	if s.current == nil {
		return nil // the process may have ended while the frame was on its way
	}
	return s.current.handle(f)
}

func (s *Server) configure(body []byte) error {
	var c frame.Configuration
	if err := json.Unmarshal(body, &c); err != nil {
		return fmt.Errorf("configuration: %v: %w", err, frame.ErrFrame)
	}
	if s.Configure == nil {
		return s.fail(errors.New("this port does not configure the host"))
	}
	if err := s.Configure(c); err != nil {
		return s.fail(err)
	}
	return s.send(frame.TypeStarted, nil)
}

func (s *Server) start(body []byte) error {
	var req frame.Start
	if err := json.Unmarshal(body, &req); err != nil || len(req.Args) == 0 {
		return fmt.Errorf("start request: %w", frame.ErrFrame)
	}
	if s.Ready != nil && !s.Ready() {
		return s.fail(errors.New("the host is not configured"))
	}
	if s.current != nil {
		s.endSession()
	}
	if s.Prepare != nil {
		s.Prepare(&req)
	}
	p, err := startProcess(req, s.send)
	if err == nil {
		s.current = p
		return nil
	}
	if err := s.send(frame.TypeStderr, []byte("spore host: "+err.Error()+"\n")); err != nil {
		return err
	}
	return s.send(frame.TypeExit, frame.Exit{Value: uint8(startErrorCode(err))}.Append(nil))
}
