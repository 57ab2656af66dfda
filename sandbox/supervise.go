package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"spore/agent"
	"spore/internal/timing"
	"spore/snapshot"
	"spore/vmm/api"
)

// Streams are the command's own. A nil Stdin is empty; a nil Stdout or Stderr discards.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Size           agent.Winsize        // of the terminal at the start, with Config.TTY
	Resize         <-chan agent.Winsize // later sizes; nil is none
	Signals        <-chan os.Signal     // passed on to the command; nil is none
}

// errTimeout is why a command that ran too long is ended.
var errTimeout = errors.New("timeout")

// Supervise starts the sandbox, runs its command and returns how it ended. It owns the sandbox until then:
// everything it makes is gone when it returns, and if its process is killed the kernel takes the rest. ready
// is called once, when the command runs; it may be nil. The error is for what came before the
// sandbox was started; afterwards every end is an Outcome.
func (sb *Sandbox) Supervise(ctx context.Context, host Host, s Streams, ready func()) (Outcome, error) {
	lock, err := sb.holdSoon()
	if err != nil {
		return Outcome{}, err
	}
	defer lock.Close()
	st, err := sb.readState()
	if err != nil {
		return Outcome{}, err
	}
	if st.Status == Stopped && sb.Config.Ephemeral() {
		return Outcome{}, &StateError{Ref: sb.Ref(), Is: Stopped, Want: "only a named sandbox can start again"}
	}
	if st.Status != Created && st.Status != Stopped { // its last supervisor was killed
		st.Status = Stopped
	}
	if err := sb.dropGroups(); err != nil {
		return Outcome{}, err
	}
	fresh, from, main := st.Status == Created, st.From, st.Main
	st.move(Starting)
	st.From, st.Main, st.Paused = "", 0, false
	st.Supervisor, st.Started, st.Ended, st.Outcome, st.Steps = os.Getpid(), time.Now().UTC(), time.Time{}, Outcome{}, nil
	if err := sb.writeState(st); err != nil {
		return Outcome{}, err
	}
	clients, err := sb.listen()
	if err != nil {
		return Outcome{}, err
	}
	v := &supervisor{sb: sb, host: host, state: st, streams: s, fresh: fresh, from: from, main: main, clock: timing.Start(), watch: newWatch(), ended: make(chan struct{})}
	v.ctx, v.cancel = context.WithCancelCause(ctx)
	go v.serve(clients)
	v.outcome = v.run(ready)
	v.watch.note(func(s *Stamps) *int64 { return &s.Gone })
	sb.lastStamps = v.watch.get()
	err = v.settle(v.outcome)
	close(v.ended)
	clients.Close()
	v.sayGoodbye()
	return v.outcome, err
}

// goodbyeLimit is how long clients that wait for the end may take to hear of it.
const goodbyeLimit = 2 * time.Second

// sayGoodbye lets those clients have their answer before the process goes.
func (v *supervisor) sayGoodbye() {
	answered := make(chan struct{})
	go func() {
		v.answers.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(goodbyeLimit):
	}
}

// supervisor is one start of a sandbox, from launch to outcome.
type supervisor struct {
	sb      *Sandbox
	host    Host
	stateMu sync.Mutex
	state   State       // Started never changes; the rest by note
	net     *connection // nil without a network; by connection and setConnection
	streams Streams
	clock   *timing.Clock
	watch   *watch

	ctx    context.Context // the life of this start, not of a call: cancelled by kill, stop and the end
	cancel context.CancelCauseFunc

	fresh     bool   // it has never been started: its writable layer is as it was made
	from      string // the dormant machine to wake from; "" boots
	main      uint64 // number of the process there that is the command; 0 starts one
	machine   *machine
	learnFrom *snapshot.Dormant // a template of which it is not known what it writes when it wakes; nil for others
	disk      *os.File          // the writable layer, once a machine was launched
	base      *os.File          // the memory that the machine woke with, for the next snapshot; nil if it booted
	command   commandHandle     // the running command; see guest.go
	hub       hub               // who watches the command's output

	standing sync.Mutex // one pause, resume or save at a time

	outcome Outcome        // final once ended is closed
	ended   chan struct{}  // closed when nothing of the machine is left and the record says so
	answers sync.WaitGroup // clients being answered
}

// run makes the guest ready, runs the command and takes the machine down again.
func (v *supervisor) run(ready func()) (outcome Outcome) {
	defer func() {
		v.cancel(ErrLost)
		for _, f := range []*os.File{v.disk, v.base} {
			if f != nil {
				f.Close()
			}
		}
	}()
	defer v.takeDown(&outcome)
	if err := v.connect(); err != nil {
		return hostError(err)
	}
	if err := v.rise(); err != nil {
		if v.machine == nil {
			return hostError(err)
		}
		return v.explain(err)
	}
	go func() { // a machine that ends takes every wait with it
		<-v.machine.done
		v.cancel(errGone)
	}()
	v.watch.note(func(s *Stamps) *int64 { return &s.Agent })
	v.note(func(st *State) {
		st.move(Running)
		st.VMM, st.Steps = v.machine.process.pid(), v.steps()
	})
	if err := v.record(); err != nil {
		return hostError(err)
	}
	outcome = v.runCommand(ready)
	if !v.sb.Config.Ephemeral() && outcome.Kind != VMMCrash {
		v.powerOff()
	}
	return outcome
}

// takeDown ends the machine and keeps what is to be known of it, then its network.
func (v *supervisor) takeDown(o *Outcome) {
	defer v.hangUp(o)
	if v.machine == nil {
		return
	}
	v.machine.kill()
	v.watch.at(v.machine.runs.Load(), func(s *Stamps) *int64 { return &s.Running })
	v.watch.at(v.machine.end.First, func(s *Stamps) *int64 { return &s.Exit })
	v.keepConsole()
	o.JailMissing = v.machine.process.missing()
}

// explain turns an error into an outcome: if the machine has ended, that is the reason.
func (v *supervisor) explain(err error) Outcome {
	if cause := context.Cause(v.ctx); errors.Is(cause, errKilled) {
		return Outcome{Kind: Signalled, Signal: "SIGKILL", ExitCode: codeSignal + 9, StartedAt: v.state.Started, Detail: "killed by its owner"}
	}
	if cause, ok := errors.AsType[*connectError](context.Cause(v.ctx)); ok {
		return hostError(cause)
	}
	if v.machineEnded(err) {
		return v.crash()
	}
	if errors.Is(err, context.Canceled) && v.ctx.Err() != nil {
		err = context.Cause(v.ctx)
	}
	return hostError(err)
}

// machineEnded reports whether err came of the machine's end. Its sockets close a little before its process is
// gone, so a lost connection is a reason to look for that long.
func (v *supervisor) machineEnded(err error) bool {
	lost := errors.Is(err, net.ErrClosed) || errors.Is(err, agent.ErrLost) || errors.Is(err, errGone) || errors.Is(err, io.EOF)
	limit := time.Duration(0)
	if lost || v.ctx.Err() != nil {
		limit = stopGrace
	}
	select {
	case <-v.machine.done:
		return true
	case <-time.After(limit):
		return false
	}
}

// crash is the outcome of a machine that ended under its command.
func (v *supervisor) crash() Outcome {
	o := Outcome{Kind: VMMCrash, ExitCode: CodeSpore, StartedAt: v.state.Started, Duration: time.Since(v.state.Started)}
	switch end := v.machine.end; end.Reason {
	case api.ExitPowerOff:
		o.Detail = "the guest powered off"
	case api.ExitReset:
		o.Detail = "the guest reset"
	case api.ExitPanic:
		o.Detail = "the guest kernel panicked"
	case api.ExitTripleFault:
		o.Detail = "the guest triple-faulted"
	case "":
		o.Detail = "the VMM was killed"
		if v.machine.died != nil {
			o.Detail = fmt.Sprintf("the VMM ended: %v", v.machine.died)
		}
	default:
		o.Detail = end.Detail
	}
	return o
}

// keepConsole writes what the guest said on its console beside the record.
func (v *supervisor) keepConsole() {
	if text := v.machine.console.String(); text != "" {
		// Best effort: the console is a help, its loss is no failure of the command.
		_ = os.WriteFile(v.sb.path(consoleFile), []byte(text), 0o600)
	}
}

// steps are the times of this start: ours, with the VMM's own beneath.
func (v *supervisor) steps() []Step {
	var all []Step
	for _, s := range v.clock.Steps() {
		all = append(all, Step{s.Name, s.Duration})
	}
	for _, s := range v.machine.steps {
		all = append(all, Step{"vmm: " + s.Name, time.Duration(s.Nanos)})
	}
	return all
}

// note changes the record in memory.
func (v *supervisor) note(change func(*State)) {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	change(&v.state)
}

// record writes the record down.
func (v *supervisor) record() error {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.sb.writeState(v.state)
}

// settle writes the end into the record.
func (v *supervisor) settle(o Outcome) error {
	v.note(func(st *State) {
		st.move(Stopped)
		st.Ended, st.Outcome, st.VMM, st.Supervisor, st.Paused, st.Network = time.Now().UTC(), o, 0, 0, false, nil
	})
	if err := v.record(); err != nil {
		return err
	}
	v.sb.lastSteps = v.state.Steps
	if v.sb.Config.AutoRemove {
		return v.sb.removeHeld()
	}
	return v.sb.dropWritable()
}

// Console returns what the guest kernel wrote to its console in the sandbox's last run.
func (sb *Sandbox) Console() (string, error) {
	b, err := os.ReadFile(sb.path(consoleFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}
