package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/guest"
)

// cmdline is the guest kernel's command line.
func cmdline(cfg Config) string {
	line := guest.Cmdline()
	if cfg.DebugConsole {
		line += " console=ttyS0 8250.nr_uarts=1 loglevel=7"
	}
	return line
}

// commandHandle is the running command, for those who signal it. The zero value is one that does not run.
type commandHandle struct {
	mu      sync.Mutex
	process *agent.Process
}

func (h *commandHandle) set(p *agent.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.process = p
}

func (h *commandHandle) get() *agent.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process
}

func (h *commandHandle) running() bool { return h.get() != nil }

// runCommand runs the sandbox's command to its end.
func (v *supervisor) runCommand(ready func()) Outcome {
	cfg := v.sb.Config
	ctx := v.ctx
	if cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, cfg.Timeout, errTimeout)
		defer cancel()
	}
	streams, closeStreams, err := v.commandStreams()
	if err != nil {
		return hostError(err)
	}
	defer closeStreams()
	e := agent.Exec{
		Args: cfg.Args, Env: cfg.Env, Dir: cfg.Dir, UID: cfg.User.UID, GID: cfg.User.GID, Groups: cfg.User.Groups, Main: true,
	}
	if cfg.TTY {
		size := v.streams.Size
		if size == (agent.Winsize{}) {
			size = agent.Winsize{Rows: 24, Cols: 80}
		}
		e.TTY = &size
	}
	began := time.Now()
	p, err := v.begin(ctx, e, streams)
	if err != nil {
		return v.startFailure(ctx, err)
	}
	v.clock.Done("start command")
	v.learn()
	v.command.set(p)
	defer v.command.set(nil)
	if ready != nil {
		ready()
	}
	stop := v.forward(p)
	exit, err := p.Wait()
	stop()
	v.watch.note(func(s *Stamps) *int64 { return &s.Ended })
	v.clock.Done("command")
	v.note(func(st *State) {
		if st.Steps != nil {
			st.Steps = v.steps()
		}
	})
	if err != nil {
		return v.lostCommand(ctx, err, began)
	}
	return fromExit(exit, began)
}

// begin starts the command, or attaches to the one that the machine woke with.
func (v *supervisor) begin(ctx context.Context, e agent.Exec, s agent.Streams) (*agent.Process, error) {
	if v.main != 0 {
		return agent.Attach(ctx, v.reach, v.main, s)
	}
	if v.sb.Config.Program {
		program, size, err := v.sb.openProgram()
		if err != nil {
			return nil, err
		}
		defer program.Close()
		e.Program, s.Program = size, program
	}
	return agent.Start(ctx, v.reach, e, s)
}

// reach connects to a port of the guest: an agent.Dial.
func (v *supervisor) reach(ctx context.Context, port uint32) (agent.Conn, error) {
	return v.machine.broker.Dial(ctx, port)
}

// commandStreams are the caller's, the log and whoever attaches, all at once.
func (v *supervisor) commandStreams() (agent.Streams, func(), error) {
	log, err := openOutputLog(v.sb.path(logFile))
	if err != nil {
		return agent.Streams{}, nil, err
	}
	s := agent.Streams{
		Stdin:  v.streams.Stdin,
		Stdout: both(v.streams.Stdout, log.stream("stdout"), v.hub.stream(agent.FrameStdout), firstByte{v.watch}),
		Stderr: both(v.streams.Stderr, log.stream("stderr"), v.hub.stream(agent.FrameStderr), firstByte{v.watch}),
	}
	end := func() { v.hub.close(); log.Close() }
	if s.Stdin == nil && v.sb.Config.Stdin { // detached with -i: input comes from whoever attaches
		pr, pw := io.Pipe()
		v.hub.input(pw)
		s.Stdin = pr
		end = func() { v.hub.close(); pw.Close(); log.Close() }
	}
	return s, end, nil
}

// both writes to a caller's writer, which may be nil or fail, and to those of ours that never do.
func both(w io.Writer, ours ...io.Writer) io.Writer {
	if w != nil {
		ours = append(ours, &untilError{w: w})
	}
	return io.MultiWriter(ours...)
}

// untilError discards after the first error: a reader that went away, as in "spore run … | head", does not end
// the command.
type untilError struct {
	w      io.Writer
	failed bool
}

func (u *untilError) Write(p []byte) (int, error) {
	if !u.failed {
		_, err := u.w.Write(p)
		u.failed = err != nil
	}
	return len(p), nil
}

// forward passes the caller's signals and sizes on to the command, until the returned function is called. A user who insists gets rid of
// the sandbox.
func (v *supervisor) forward(p *agent.Process) (stop func()) {
	ctx, cancel := context.WithCancel(v.ctx)
	insist := func() { v.cancel(errKilled) }
	refused := func(err error) { v.host.log().Debug("pass signal on", "err", err) }
	go v.streams.relay(insist, refused).run(ctx, p)
	return cancel
}

// signalCommand sends a signal to the command, if it runs.
func (v *supervisor) signalCommand(sig unix.Signal) error {
	p := v.command.get()
	if p == nil {
		return errors.New("its command is not running")
	}
	if v.standsStill() {
		return errPaused
	}
	return p.Signal(v.ctx, int(sig))
}

// startFailure is the outcome of a command that did not start.
func (v *supervisor) startFailure(ctx context.Context, err error) Outcome {
	var f *agent.Failure
	if !errors.As(err, &f) {
		return v.lostCommand(ctx, err, time.Now())
	}
	code := f.Code
	if code != CodeCannotExec && code != CodeNotFound {
		return hostError(fmt.Errorf("start command: %w", f))
	}
	return Outcome{Kind: Exited, ExitCode: code, Detail: f.Text, StartedAt: time.Now().UTC()}
}

// lostCommand is the outcome of a command whose end the agent did not report.
func (v *supervisor) lostCommand(ctx context.Context, err error, began time.Time) Outcome {
	o := v.explain(err)
	if errors.Is(context.Cause(ctx), errTimeout) {
		o = Outcome{Kind: Timeout, ExitCode: CodeTimeout, Detail: fmt.Sprintf("ran longer than %s", v.sb.Config.Timeout)}
	}
	o.StartedAt, o.Duration = began.UTC(), time.Since(began)
	return o
}

// fromExit names the end of a command by its cause. What the agent says besides code and signal only explains
// an end that is bad already.
func fromExit(e agent.Exit, began time.Time) Outcome {
	o := Outcome{
		Kind: Exited, ExitCode: e.Code, StartedAt: began.UTC(), Duration: e.Duration, UserTime: e.User, SysTime: e.System, MaxRSS: e.MaxRSS,
	}
	if e.Signal != 0 {
		o.Kind, o.Signal, o.ExitCode = Signalled, signalName(e.Signal), codeSignal+e.Signal
	}
	if o.ExitCode == 0 {
		return o
	}
	switch {
	case e.OOMKills > 0:
		o.Kind, o.Detail = OOM, "the guest ran out of memory: give it more with --memory"
	case e.PidsMax > 0:
		o.Kind, o.Detail = Pids, fmt.Sprintf("%d forks were refused: allow more processes with --pids", e.PidsMax)
	case e.DiskFull:
		o.Kind, o.Detail = DiskFull, "the writable layer is full: give it more with --disk"
	}
	return o
}

// powerOffLimit is how long a named sandbox may take to write its disk back.
const powerOffLimit = 30 * time.Second

// powerOff lets the guest write everything back before the machine goes.
func (v *supervisor) powerOff() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), powerOffLimit)
	defer cancel()
	if err := agent.PowerOff(ctx, v.reach); err != nil {
		v.host.log().Debug("power off", "err", err)
		return
	}
	select {
	case <-v.machine.done:
	case <-ctx.Done():
	}
}
