package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/rights"
)

// viewerQueue is how many frames wait for an attached client. One that falls further behind is dropped: it
// must not slow the command down for the others.
const viewerQueue = 256

// hub passes the command's output on to attached clients, and their input to the command. The zero value is
// ready.
type hub struct {
	mu      sync.Mutex
	viewers map[*viewer]bool
	stdin   *io.PipeWriter // nil when the command's input is not theirs to give
	closed  bool
}

// viewer is one attached client.
type viewer struct{ frames chan frame }

type frame struct {
	kind    agent.FrameType
	payload []byte
}

func (h *hub) input(w *io.PipeWriter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stdin = w
}

// stream is where one of the command's streams is written to.
func (h *hub) stream(kind agent.FrameType) io.Writer { return hubStream{h, kind} }

type hubStream struct {
	hub  *hub
	kind agent.FrameType
}

func (s hubStream) Write(p []byte) (int, error) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if len(s.hub.viewers) == 0 {
		return len(p), nil
	}
	f := frame{s.kind, append([]byte(nil), p...)}
	for v := range s.hub.viewers {
		select {
		case v.frames <- f:
		default:
			s.hub.drop(v)
		}
	}
	return len(p), nil
}

// drop lets a viewer go. mu is held.
func (h *hub) drop(v *viewer) {
	if h.viewers[v] {
		delete(h.viewers, v)
		close(v.frames)
	}
}

// close lets all viewers go: the command has ended.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for v := range h.viewers {
		h.drop(v)
	}
}

func (h *hub) join() (*viewer, *io.PipeWriter, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, errors.New("its command has ended")
	}
	v := &viewer{frames: make(chan frame, viewerQueue)}
	if h.viewers == nil {
		h.viewers = map[*viewer]bool{}
	}
	h.viewers[v] = true
	return v, h.stdin, nil
}

// attach joins a client to the command's streams and returns the client's end of a socket that carries them as
// agent frames: FrameStdout and FrameStderr out, FrameStdin in, FrameExit never; Wait has the outcome.
func (v *supervisor) attach(stdin bool) (*os.File, error) {
	view, in, err := v.hub.join()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if stdin && in == nil {
		ours.Close()
		theirs.Close()
		return nil, errors.New("its standard input is not open: it was started without -i")
	}
	go func() {
		defer ours.Close()
		w := agent.NewWriter(ours)
		for f := range view.frames {
			if w.Send(f.kind, f.payload) != nil {
				break
			}
		}
		v.hub.mu.Lock()
		v.hub.drop(view)
		v.hub.mu.Unlock()
	}()
	go func() {
		r := agent.NewReader(ours)
		for {
			kind, payload, err := r.Next()
			if err != nil {
				return
			}
			if kind == agent.FrameStdin && stdin {
				in.Write(payload)
			}
		}
	}()
	return theirs, nil
}

// Attach copies the command's output from now on to stdout and stderr, and stdin, if it is not nil, to the
// command, until the command ends or ctx does.
func (sb *Sandbox) Attach(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	_, f, err := sb.ask(ctx, request{Verb: verbAttach, Stdin: stdin != nil})
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if stdin != nil {
		go io.Copy(agent.NewWriter(conn).Stream(agent.FrameStdin), stdin)
	}
	r := agent.NewReader(conn)
	for {
		kind, payload, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return sb.lost(ctx, err)
		case kind == agent.FrameStdout:
			_, err = stdout.Write(payload)
		case kind == agent.FrameStderr:
			_, err = stderr.Write(payload)
		}
		if err != nil {
			return err
		}
	}
}

// errInsisted is why a process ends whose caller does not wait for it any more.
var errInsisted = errors.New("interrupted three times: the process is left to itself if the guest does not answer, and killed if it does")

// Exec runs another process in the running sandbox and returns how it ended. ctx bounds its life. So does a caller who insists, and a guest
// that does not take a signal.
func (sb *Sandbox) Exec(ctx context.Context, e agent.Exec, s Streams) (Outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p, err := agent.Start(ctx, sb.Dial, e, agent.Streams{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr})
	var f *agent.Failure
	if errors.As(err, &f) && (f.Code == CodeCannotExec || f.Code == CodeNotFound) {
		return Outcome{Kind: Exited, ExitCode: f.Code, Detail: f.Text}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	var passing sync.WaitGroup
	passing.Go(func() {
		refused := func(err error) {
			if unanswered(err) {
				cancel(fmt.Errorf("pass signal on: %w", err))
			}
		}
		s.relay(func() { cancel(errInsisted) }, refused).run(ctx, p)
	})
	exit, err := p.Wait()
	cancel(nil)
	passing.Wait()
	if err != nil {
		return Outcome{}, err
	}
	return fromExit(exit, sb.Config.Created), nil
}
