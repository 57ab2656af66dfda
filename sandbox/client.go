package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/wire"
	"spore/network/policy"
)

// ask sends one request to the supervisor and waits for the reply, however long it takes; ctx ends the wait.
// A supervisor that dies closes the connection, so nothing waits for ever. The connection stays open when the
// reply announces a descriptor.
func (sb *Sandbox) ask(ctx context.Context, r request) (reply, *os.File, error) {
	var rep reply
	c, err := sb.dialSupervisor()
	if err != nil {
		return rep, nil, sb.notRunning(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := wire.Write(c, r); err != nil {
		return rep, nil, sb.lost(ctx, err)
	}
	if err := wire.Read(c, &rep); err != nil {
		return rep, nil, sb.lost(ctx, err)
	}
	if rep.Error != "" {
		return rep, nil, fmt.Errorf("sandbox %s: %s", sb.Ref(), rep.Error)
	}
	if !rep.File {
		return rep, nil, nil
	}
	list, err := receiveFiles(c, 1)
	if err != nil {
		return rep, nil, sb.lost(ctx, err)
	}
	return rep, list[0], nil
}

// ErrLost says that a sandbox ended while a call was waiting for it.
var ErrLost = errors.New("the sandbox is gone")

func (sb *Sandbox) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("sandbox %s: %w", sb.Ref(), ErrLost)
	}
	return fmt.Errorf("sandbox %s: %w", sb.Ref(), err)
}

// notRunning explains a failed connection by the sandbox's state.
func (sb *Sandbox) notRunning(err error) error {
	st, stateErr := sb.State()
	if stateErr != nil {
		return errors.Join(err, stateErr)
	}
	if st.Status == Starting || st.Status == Running {
		return fmt.Errorf("reach sandbox %s: %w", sb.Ref(), err)
	}
	return &StateError{Ref: sb.Ref(), Is: st.Status, Want: "start it first (spore start " + sb.Ref() + ")"}
}

// Dial connects to a vsock port inside the running sandbox.
func (sb *Sandbox) Dial(ctx context.Context, port uint32) (agent.Conn, error) {
	_, f, err := sb.ask(ctx, request{Verb: verbDial, Port: port})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// Signal sends a signal to the sandbox's command.
func (sb *Sandbox) Signal(ctx context.Context, sig unix.Signal) error {
	_, _, err := sb.ask(ctx, request{Verb: verbSignal, Signal: int(sig)})
	return err
}

// Stop signals the command with sig, gives it the grace period, then ends the sandbox; it returns when that is done.
func (sb *Sandbox) Stop(ctx context.Context, sig unix.Signal, grace time.Duration) error {
	_, _, err := sb.ask(ctx, request{Verb: verbStop, Signal: int(sig), Grace: grace})
	return err
}

// Kill ends the sandbox at once and returns when it has ended.
func (sb *Sandbox) Kill(ctx context.Context) error {
	_, _, err := sb.ask(ctx, request{Verb: verbKill})
	return err
}

// Wait returns the outcome, at once if the sandbox has ended already.
func (sb *Sandbox) Wait(ctx context.Context) (Outcome, error) {
	rep, _, err := sb.ask(ctx, request{Verb: verbWait})
	if err == nil && rep.Outcome != nil {
		return *rep.Outcome, nil
	}
	st, stateErr := sb.State()
	if stateErr != nil {
		return Outcome{}, errors.Join(err, stateErr)
	}
	if st.Outcome.Ended() {
		return st.Outcome, nil
	}
	return Outcome{}, err
}

// Pause makes the sandbox stand still: no program in it runs, no time passes for it but the wall clock's.
func (sb *Sandbox) Pause(ctx context.Context) error {
	_, _, err := sb.ask(ctx, request{Verb: verbPause})
	return err
}

// Resume lets a paused sandbox go on.
func (sb *Sandbox) Resume(ctx context.Context) error {
	_, _, err := sb.ask(ctx, request{Verb: verbResume})
	return err
}

// Save makes a dormant machine of the running sandbox at dir, where none may be; the directory above is the same user's. Live
// copies memory while the guest runs.
func (sb *Sandbox) Save(ctx context.Context, dir string, live bool) (Saved, error) {
	rep, _, err := sb.ask(ctx, request{Verb: verbSave, Dir: dir, Live: live})
	if err != nil || rep.Saved == nil {
		return Saved{}, err
	}
	return *rep.Saved, nil
}

// Explain says what the running sandbox's network would do with a connection of the guest's to address.
func (sb *Sandbox) Explain(ctx context.Context, address string) (policy.Explanation, error) {
	rep, _, err := sb.ask(ctx, request{Verb: verbExplain, Address: address})
	if err != nil || rep.Explanation == nil {
		return policy.Explanation{}, err
	}
	return *rep.Explanation, nil
}

// At notes in the record of a running sandbox which snapshot it is at: the parent of the next.
func (sb *Sandbox) At(ctx context.Context, id string) error {
	_, _, err := sb.ask(ctx, request{Verb: verbAt, Snapshot: id})
	return err
}

// Counters returns what the VMM counts, by device.
func (sb *Sandbox) Counters(ctx context.Context) (map[string]map[string]uint64, error) {
	rep, _, err := sb.ask(ctx, request{Verb: verbStats})
	return rep.Counters, err
}

// Stats asks the guest's agent for its figures.
func (sb *Sandbox) Stats(ctx context.Context) (agent.Stats, error) {
	return agent.GetStats(ctx, sb.Dial)
}
