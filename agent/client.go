package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Conn is a connection between host and guest: every net.Conn is one. To name that type would put package net, and what it sets up at its
// start, into the agent of every guest.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Dial connects to a vsock port of the guest.
type Dial func(ctx context.Context, port uint32) (Conn, error)

// ErrLost says that the guest, or its agent, went away in the middle of a call.
var ErrLost = errors.New("the guest is gone")

// startLimit bounds how long a healthy agent may take to answer a request, short of doing it.
const startLimit = time.Minute

// lost turns the end of a connection into ErrLost, or into why ctx ended.
func lost(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var f *Failure
	if errors.As(err, &f) || errors.Is(err, ErrFrame) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// Handshake carries out the host's part on a fresh control connection. ctx must have an end.
func Handshake(ctx context.Context, conn Conn, s Setup) (Hello, error) {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	var hello Hello
	r, w := NewReader(conn), NewWriter(conn)
	if err := r.Expect(FrameHello, &hello); err != nil {
		return hello, fmt.Errorf("greet agent: %w", lost(ctx, err))
	}
	hello.Kernel = plain(hello.Kernel)
	if hello.Version != Version {
		return hello, fmt.Errorf("greet agent: it speaks version %d, this is %d", hello.Version, Version)
	}
	if err := w.SendJSON(FrameSetup, s); err != nil {
		return hello, fmt.Errorf("set up guest: %w", lost(ctx, err))
	}
	var ready Failure
	if err := r.Expect(FrameReady, &ready); err != nil {
		return hello, fmt.Errorf("set up guest: %w", lost(ctx, err))
	}
	if ready.judge(); ready.Text != "" {
		return hello, fmt.Errorf("set up guest: %w", &ready)
	}
	return hello, nil
}

// request opens a connection and sends the first frame. The connection ends with ctx. Reading and writing have
// startLimit as their deadline, which callers who stay longer take off.
func request(ctx context.Context, dial Dial, r Request) (conn Conn, stop func(), err error) {
	conn, err = dial(ctx, RequestPort)
	if err != nil {
		return nil, nil, fmt.Errorf("reach agent: %w", err)
	}
	detach := context.AfterFunc(ctx, func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(startLimit))
	if err := NewWriter(conn).SendJSON(FrameRequest, r); err != nil {
		detach()
		conn.Close()
		return nil, nil, fmt.Errorf("ask agent to %s: %w", r.Op, lost(ctx, err))
	}
	return conn, func() { detach(); conn.Close() }, nil
}

// Process is a process in the guest that was started from here. Its methods may be called by any goroutine.
type Process struct {
	id   uint64
	dial Dial
	w    *Writer
	done chan struct{}
	exit Exit
	err  error
}

// Streams are the ends of a process's standard streams. A nil Stdin is empty; nil outputs discard.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Program        io.Reader // content of the file of Exec.Program bytes; it is read in Start only
}

// Start starts a process. A process that cannot be started is a *Failure with Code 126 or 127. ctx bounds the
// whole life of the process: when it ends the connection goes, and the agent kills the process.
//
// A Stdin that never ends does not hold anything up; the goroutine that reads it ends with its next byte.
func Start(ctx context.Context, dial Dial, e Exec, s Streams) (*Process, error) {
	e.Stdin = s.Stdin != nil
	ask := Request{Op: OpExec, Exec: &e}
	if e.Program != 0 {
		ask.Op = OpRun
	}
	return follow(ctx, dial, ask, s)
}

// Attach takes over a process of a machine that was copied from another: id is what its Process had there.
func Attach(ctx context.Context, dial Dial, id uint64, s Streams) (*Process, error) {
	return follow(ctx, dial, Request{Op: OpAttach, ID: id}, s)
}

// follow makes a request that a process answers.
func follow(ctx context.Context, dial Dial, ask Request, s Streams) (*Process, error) {
	conn, stop, err := request(ctx, dial, ask)
	if err != nil {
		return nil, err
	}
	r := NewReader(conn)
	var started Started
	if ask.Op == OpRun {
		err = startWith(conn, r, &started, s.Program, ask.Exec.Program)
	} else {
		err = r.Expect(FrameStarted, &started)
	}
	if err != nil {
		stop()
		return nil, lost(ctx, err)
	}
	conn.SetDeadline(time.Time{})
	p := &Process{id: started.ID, dial: dial, w: NewWriter(conn), done: make(chan struct{})}
	if s.Stdin != nil {
		go p.feed(s.Stdin)
	}
	go func() {
		defer close(p.done)
		defer stop()
		p.exit, p.err = receive(r, s)
		p.err = lost(ctx, p.err)
	}()
	return p, nil
}

// feed sends standard input until its end, or until the process is gone.
func (p *Process) feed(stdin io.Reader) {
	if _, err := io.CopyBuffer(p.w.Stream(FrameStdin), onlyReader{stdin}, make([]byte, MaxStream)); err == nil {
		// A process that has ended meanwhile needs no end of input.
		_ = p.w.Send(FrameEOF, nil)
	}
}

// onlyReader hides WriteTo, which would bypass the buffer's size.
type onlyReader struct{ io.Reader }

// receive passes output on until the exit.
func receive(r *Reader, s Streams) (Exit, error) {
	out, errs := firstWriter(s.Stdout), firstWriter(s.Stderr)
	for {
		t, payload, err := r.Next()
		if err != nil {
			return Exit{}, err
		}
		switch t {
		case FrameStdout:
			out.Write(payload)
		case FrameStderr:
			errs.Write(payload)
		case FrameExit:
			var e Exit
			if err := decode(payload, &e); err != nil {
				return Exit{}, err
			}
			return e, e.judge()
		default:
			return Exit{}, fmt.Errorf("%w: type %d from a process", ErrFrame, t)
		}
	}
}

// sink writes until the first error and discards from then on: a caller that has gone away must not hold the
// process up, nor end it.
type sink struct {
	w      io.Writer
	failed bool
}

func firstWriter(w io.Writer) *sink {
	if w == nil {
		w = io.Discard
	}
	return &sink{w: w}
}

func (s *sink) Write(p []byte) {
	if !s.failed {
		_, err := s.w.Write(p)
		s.failed = err != nil
	}
}

// ID is the process's number in its guest.
func (p *Process) ID() uint64 { return p.id }

// Wait returns how the process ended. The error is ErrLost when the guest went away first.
func (p *Process) Wait() (Exit, error) {
	<-p.done
	return p.exit, p.err
}

// Done is closed when Wait would return.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process's group.
func (p *Process) Signal(ctx context.Context, number int) error {
	return simple(ctx, p.dial, Request{Op: OpSignal, ID: p.id, Signal: number}, nil)
}

// Resize changes the size of the process's terminal; without one it does nothing.
func (p *Process) Resize(ctx context.Context, s Winsize) error {
	return simple(ctx, p.dial, Request{Op: OpResize, ID: p.id, Size: &s}, nil)
}

// GetStats asks for the guest's figures.
func GetStats(ctx context.Context, dial Dial) (Stats, error) {
	var s Stats
	err := simple(ctx, dial, Request{Op: OpStats}, &s)
	if err == nil {
		err = s.judge()
	}
	return s, err
}

// Ping asks for nothing but an answer.
func Ping(ctx context.Context, dial Dial) error { return simple(ctx, dial, Request{Op: OpPing}, nil) }

// Hold tells the guest that it is about to be saved. Release, or Resume in a copy, must follow.
func Hold(ctx context.Context, dial Dial) error { return simple(ctx, dial, Request{Op: OpHold}, nil) }

// Release tells the guest that it was saved and goes on.
func Release(ctx context.Context, dial Dial) error {
	return simple(ctx, dial, Request{Op: OpRelease}, nil)
}

// Rehearse makes the guest take up its late devices (LateHID), lay its agent's file together, and start and end the image's shell once, before it is copied: its copies answer
// and start their commands sooner.
func Rehearse(ctx context.Context, dial Dial) error {
	return simple(ctx, dial, Request{Op: OpRehearse}, nil)
}

// Sync makes the guest write everything back.
func Sync(ctx context.Context, dial Dial) error { return simple(ctx, dial, Request{Op: OpSync}, nil) }

// Resume tells the guest that it continues from a snapshot.
func Resume(ctx context.Context, dial Dial, r Resumed) error {
	return simple(ctx, dial, Request{Op: OpResumed, Resumed: &r}, nil)
}

// PowerOff asks the guest to end everything, write it back and switch off.
func PowerOff(ctx context.Context, dial Dial) error {
	return simple(ctx, dial, Request{Op: OpPowerOff}, nil)
}

// simple makes a request whose whole answer is FrameDone.
func simple(ctx context.Context, dial Dial, r Request, v any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("no answer within %s: %w", startLimit, context.DeadlineExceeded))
	defer cancel()
	conn, stop, err := request(ctx, dial, r)
	if err != nil {
		return err
	}
	defer stop()
	if err := NewReader(conn).Expect(FrameDone, v); err != nil {
		return fmt.Errorf("ask agent to %s: %w", r.Op, lost(ctx, err))
	}
	return nil
}
