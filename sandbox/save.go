package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spore/agent"
	"spore/internal/timing"
	"spore/snapshot"
	"spore/vmm/api"
)

// Saved is how a snapshot came about.
type Saved struct {
	Live    bool          `json:"live"`         // memory was copied while the guest ran
	Before  int64         `json:"before_bytes"` // of memory, copied while it ran
	During  int64         `json:"during_bytes"` // copied while it stood still
	Stopped time.Duration `json:"stopped_ns"`   // for which it stood still; 0 if it was paused
	Steps   []Step        `json:"stopped_for"`  // what took that time

	goesOn bool // the guest runs on, or stands still because it is to
}

// saveLimit bounds a snapshot. It only has to end.
const saveLimit = 20 * time.Minute

var errPaused = errors.New("it is paused: let it go on first (spore resume)")

// standsStill reports whether the sandbox is paused.
func (v *supervisor) standsStill() bool {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.state.Paused
}

// pause makes the guest stand still. It is held while it does, so that it can be saved.
func (v *supervisor) pause() error {
	v.standing.Lock()
	defer v.standing.Unlock()
	if !v.command.running() {
		return errors.New("it is not running yet")
	}
	if v.standsStill() {
		return errors.New("it is paused already")
	}
	if err := agent.Hold(v.ctx, v.reach); err != nil {
		return err
	}
	if _, err := v.machine.request(v.ctx, api.Request{Op: api.OpPause}); err != nil {
		return errors.Join(err, agent.Release(v.ctx, v.reach))
	}
	v.note(func(st *State) { st.Paused = true })
	return v.record()
}

// resume lets it go on.
func (v *supervisor) resume() error {
	v.standing.Lock()
	defer v.standing.Unlock()
	if !v.standsStill() {
		return errors.New("it is not paused")
	}
	if _, err := v.machine.request(v.ctx, api.Request{Op: api.OpResume}); err != nil {
		return err
	}
	v.note(func(st *State) { st.Paused = false })
	return errors.Join(agent.Release(v.ctx, v.reach), v.record())
}

// saveTo makes a dormant machine of the sandbox at dir.
func (v *supervisor) saveTo(dir string, live bool) (*Saved, error) {
	v.standing.Lock()
	defer v.standing.Unlock()
	if !v.command.running() {
		return nil, errors.New("it is not running yet")
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("save to %q: want an absolute path", dir)
	}
	ctx, cancel := context.WithTimeoutCause(v.ctx, saveLimit, fmt.Errorf("the snapshot was not done within %s", saveLimit))
	defer cancel()
	draft, err := snapshot.NewDraft(dir)
	if err != nil {
		return nil, err
	}
	defer draft.Discard()
	paused := v.standsStill()
	if !paused {
		if err := agent.Hold(ctx, v.reach); err != nil {
			return nil, err
		}
	}
	s, err := v.save(ctx, draft, live)
	if err == nil {
		_, err = draft.Publish(v.spec())
	}
	if !paused {
		err = errors.Join(err, agent.Release(v.ctx, v.reach))
	}
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// at notes which snapshot the sandbox is at.
func (v *supervisor) at(id string) error {
	v.note(func(st *State) { st.Snapshot = id })
	return v.record()
}

// save writes the machine to a draft: its state, its memory, its writable layer, all of one moment. The guest stands still
// from that moment until the writable layer is copied, and afterwards if it is paused.
func (v *supervisor) save(ctx context.Context, to *snapshot.Draft, live bool) (s Saved, err error) {
	paused, size := v.standsStill(), v.sb.Config.Disk
	live = live && !paused
	if v.base != nil {
		if err := to.Begin(ctx, v.base, v.sb.Config.Memory); err != nil {
			s.goesOn = true
			return s, fmt.Errorf("save sandbox: %w", err)
		}
	}
	if live {
		if err := v.prepareDisk(ctx, to); err != nil {
			return s, fmt.Errorf("save sandbox: %w", err)
		}
	}
	reply, err := v.machine.requestWithPages(ctx, api.Request{Op: api.OpSave, Live: live, GoOn: live}, to.State, to.Memory)
	if err != nil { // then the VMM has left it as it was
		s.goesOn = ctx.Err() == nil
		return s, fmt.Errorf("save sandbox: %w", err)
	}
	goesOn := reply.Saved != nil && reply.Saved.GoesOn // for nothing was written to the disk
	clock := timing.Start()
	if live {
		err = v.finishDisk(ctx, to, reply.Saved)
	} else {
		err = to.TakeDisk(ctx, v.disk, size)
	}
	s.goesOn = true
	if goesOn {
		s.Stopped = time.Duration(reply.Saved.Stopped)
	} else if clock.Done("disk"); !paused {
		resumed, resumeErr := v.machine.request(context.WithoutCancel(ctx), api.Request{Op: api.OpResume})
		err = errors.Join(err, resumeErr)
		s.Stopped = time.Duration(resumed.Stopped)
		s.goesOn = resumeErr == nil
		clock.Done("resume")
	}
	if err != nil {
		return s, fmt.Errorf("save sandbox: %w", err)
	}
	if reply.Saved == nil {
		return s, errors.New("save sandbox: the VMM does not say what it saved")
	}
	if live {
		if err := to.PackDisk(ctx, size); err != nil {
			return s, fmt.Errorf("save sandbox: %w", err)
		}
	}
	for _, step := range reply.Saved.Steps {
		s.Steps = append(s.Steps, Step{Name: step.Name, Duration: time.Duration(step.Nanos)})
	}
	for _, step := range clock.Steps() {
		s.Steps = append(s.Steps, Step(step))
	}
	s.Before, s.During, s.Live = reply.Saved.Before, reply.Saved.During, reply.Saved.Before > 0
	if reply.Saved.Changes != (v.base != nil) {
		return s, errors.New("save sandbox: the VMM saved changes to a memory that it did not wake with, or not those to the one that it did")
	}
	return s, to.Whole(v.sb.Config.Memory)
}

// Fits reports why the sandbox cannot become what a machine of that shape was, which was made as a sandbox of that
// configuration: its memory would not be that of what it finds on its disks.
func (sb *Sandbox) Fits(spec snapshot.Spec, made Config) error {
	cfg := sb.Config
	const remedy = "make another of it with 'spore run --from'"
	if spec.CPUs != cfg.CPUs || spec.Memory != cfg.Memory || spec.Disk != cfg.Disk {
		return fmt.Errorf("%w: the snapshot is of %d CPUs, %d MiB of memory and %d MiB of disk, the sandbox has %d, %d and %d: %s",
			ErrConfig, spec.CPUs, spec.Memory>>20, spec.Disk>>20, cfg.CPUs, cfg.Memory>>20, cfg.Disk>>20, remedy)
	}
	if made.ImageDigest != cfg.ImageDigest || made.Root != cfg.Root || made.ReadOnly != cfg.ReadOnly {
		return fmt.Errorf("%w: the snapshot is of %.80q (%.19s), the sandbox of %.80q (%.19s), or their roots differ otherwise: %s",
			ErrConfig, made.Image, made.ImageDigest, cfg.Image, cfg.ImageDigest, remedy)
	}
	return nil
}

// Rewind makes a sandbox that does not run what it was at a snapshot that fits it: its writable layer now, its memory when it
// is started next.
func (sb *Sandbox) Rewind(ctx context.Context, to *snapshot.Dormant, id string) error {
	lock, err := sb.holdSoon()
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := sb.readState()
	if err != nil {
		return err
	}
	fresh := sb.path(writableFile) + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := to.NewDisk(ctx, fresh); err != nil {
		return err
	}
	// Between the two steps a crash leaves the snapshot's disk without its memory: the guest then boots with it.
	if err := os.Rename(fresh, sb.path(writableFile)); err != nil {
		return err
	}
	st.From, st.Main, st.Snapshot = to.Dir(), to.Spec.Main, id
	return sb.writeState(st)
}
