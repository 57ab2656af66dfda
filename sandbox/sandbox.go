package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// Sandbox is one record on disk. Its Config never changes after Create.
type Sandbox struct {
	Config Config
	dir    string

	lastSteps  []Step // of a start that this very value supervised
	lastStamps Stamps // of the same
}

// Ref is how the user knows it: the name, or the id.
func (sb *Sandbox) Ref() string {
	if sb.Config.Name != "" {
		return sb.Config.Name
	}
	return sb.Config.ID
}

// path of a file of the sandbox.
func (sb *Sandbox) path(name string) string { return filepath.Join(sb.dir, name) }

// hold takes the sandbox's own lock for as long as its supervisor lives. The kernel releases it whatever way
// the supervisor ends, which is how everybody else knows.
func (sb *Sandbox) hold() (*os.File, error) {
	f, err := flock.Open(sb.path(lockFile), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &StateError{Ref: sb.Ref(), Is: Running, Want: "it has a supervisor already"}
	}
	if err != nil {
		return nil, fmt.Errorf("lock sandbox %s: %w", sb.Ref(), err)
	}
	return f, nil
}

// A supervisor whose command has ended may hold the lock a moment longer.
const (
	holdLimit = 5 * time.Second
	holdEvery = 10 * time.Millisecond
)

// holdSoon is hold for a sandbox that may just have ended.
func (sb *Sandbox) holdSoon() (*os.File, error) {
	for limit := time.Now().Add(holdLimit); ; time.Sleep(holdEvery) {
		lock, err := sb.hold()
		if err == nil || time.Now().After(limit) {
			return lock, err
		}
		if st, stateErr := sb.readState(); stateErr != nil || st.Status != Stopped {
			return nil, err
		}
	}
}

// alive reports whether a supervisor holds the sandbox.
func (sb *Sandbox) alive() bool {
	f, err := os.Open(sb.path(lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock.Take(f, unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Alive reports whether the sandbox of that id has a supervisor.
func (s *Store) Alive(id string) bool {
	return idPattern.MatchString(id) && (&Sandbox{dir: filepath.Join(s.dir, id)}).alive()
}

// State reads where the sandbox is. A sandbox that claims to run but has lost its supervisor (kill -9, power
// cut) is set right first: it has ended with host-error.
func (sb *Sandbox) State() (State, error) {
	st, err := sb.readState()
	if err != nil || st.Status == Created || st.Status == Stopped || sb.alive() {
		return st, err
	}
	lock, err := sb.hold()
	if err != nil {
		return sb.readState() // another supervisor came first
	}
	defer lock.Close()
	if st, err = sb.readState(); err != nil || st.Status == Created || st.Status == Stopped {
		return st, err
	}
	st.move(Stopped)
	st.Ended = time.Now().UTC()
	st.Outcome = Outcome{Kind: HostError, ExitCode: CodeSpore, Detail: "its supervisor was killed", StartedAt: st.Started}
	st.Network = nil
	return st, errors.Join(sb.writeState(st), sb.dropWritable())
}

func (sb *Sandbox) readState() (State, error) {
	var st State
	if err := readJSON(sb.path(stateFile), &st); err != nil {
		return st, fmt.Errorf("read state of sandbox %s: %w", sb.Ref(), err)
	}
	return st, nil
}

func (sb *Sandbox) writeState(st State) error {
	if err := writeJSON(sb.path(stateFile), st); err != nil {
		return fmt.Errorf("write state of sandbox %s: %w", sb.Ref(), err)
	}
	return nil
}

// dropWritable deletes the writable layer of an ephemeral sandbox.
func (sb *Sandbox) dropWritable() error {
	if !sb.Config.Ephemeral() {
		return nil
	}
	if err := os.Remove(sb.path(writableFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Standing calls do with the writable layer of a sandbox that does not run, and keeps it from starting meanwhile.
func (sb *Sandbox) Standing(do func(writable *os.File) error) error {
	lock, err := sb.holdSoon()
	if err != nil {
		var se *StateError
		if errors.As(err, &se) {
			se.Want = "stop it first (spore stop), or copy it as it runs (spore fork)"
		}
		return err
	}
	defer lock.Close()
	f, err := os.Open(sb.path(writableFile))
	if errors.Is(err, fs.ErrNotExist) {
		return &StateError{Ref: sb.Ref(), Is: Stopped, Want: "it has no name or its disk was in memory, and what it wrote is gone"}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return do(f)
}

// Remove deletes the sandbox and everything it wrote. A running one is refused: stop it first.
func (sb *Sandbox) Remove() error {
	lock, err := sb.holdSoon()
	if err != nil {
		var se *StateError
		if errors.As(err, &se) {
			se.Want = "stop it first (spore stop), or remove it by force (spore rm --force)"
		}
		return err
	}
	defer lock.Close()
	return sb.removeHeld()
}

// removeHeld deletes the directory of a sandbox whose lock the caller holds. The record disappears in one
// step, so a crash leaves either all of it or a directory that nobody lists.
func (sb *Sandbox) removeHeld() error {
	if err := sb.dropGroups(); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", sb.Ref(), err)
	}
	gone := sb.dir + ".gone"
	if err := os.Rename(sb.dir, gone); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", sb.Ref(), err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", sb.Ref(), err)
	}
	return nil
}

// Sweep deletes what a crash left: of sandboxes half made or half removed, and of the jails of killed supervisors.
func (s *Store) Sweep() error {
	return errors.Join(s.sweepRecords(), s.sweepJails())
}

func (s *Store) sweepJails() error {
	all, err := s.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, sb := range all {
		if len(sb.groups()) == 0 {
			continue // and its lock is not ours to touch: it may be starting
		}
		lock, err := sb.hold()
		if err != nil {
			continue // it runs, or is being removed
		}
		errs = append(errs, sb.dropGroups(), lock.Close())
	}
	return errors.Join(errs...)
}

func (s *Store) sweepRecords() error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".new" || ext == ".gone" {
			errs = append(errs, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Steps returns where the start-up time of the last start went; nil if that is not known.
func (sb *Sandbox) Steps() []Step {
	if sb.lastSteps != nil {
		return sb.lastSteps
	}
	st, err := sb.readState()
	if err != nil {
		return nil
	}
	return st.Steps
}
