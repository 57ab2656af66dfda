package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// ErrNotFound says that no snapshot has that name or id.
var ErrNotFound = errors.New("no such snapshot")

// Store is the directory of all snapshots, one directory each. They form trees: each knows its parent. Any number of
// processes may use it at once.
type Store struct {
	dir  string
	keys *Keys
}

// OpenStore opens the store at dir and makes the directory if it is missing.
func OpenStore(dir string, k *Keys) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	return &Store{dir, k}, nil
}

// Keys are those that the store signs and verifies with.
func (s *Store) Keys() *Keys { return s.keys }

func (s *Store) path(id string) string { return filepath.Join(s.dir, id) }

// lockStore keeps others from changing which snapshots there are, until the function returned is called.
func (s *Store) lockStore() (func(), error) {
	f, err := flock.Open(filepath.Join(s.dir, "lock"), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock snapshot store: %w", err)
	}
	return func() { f.Close() }, nil
}

// Ref is how the user knows it: the name, or the id.
func (m *Manifest) Ref() string {
	if m.Name != "" {
		return m.Name
	}
	return m.ID
}

// stagingDir is where snapshots are made, each beside a lock that its maker holds.
const stagingDir = "staging"

// Pending is a snapshot in the making.
type Pending struct {
	Dir string // where another process may publish the dormant machine

	store *Store
	id    string
	lock  *os.File
}

// Begin starts a snapshot. Add or Discard ends it, and so does the end of this process.
func (s *Store) Begin() (*Pending, error) {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	p := &Pending{store: s, id: hex.EncodeToString(b[:])}
	staging := filepath.Join(s.dir, stagingDir)
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	p.Dir = filepath.Join(staging, p.id)
	var err error
	if p.lock, err = flock.Open(p.Dir+".lock", unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	return p, nil
}

// Discard deletes what there is of it. After Add it does nothing.
func (p *Pending) Discard() error {
	if p.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(p.Dir), os.RemoveAll(p.Dir+draftExt), os.Remove(p.Dir+".lock"), p.lock.Close())
	p.lock = nil
	return err
}

// Add signs the dormant machine that was published at p.Dir and makes it a snapshot. It fills in what the manifest does
// not say by itself. On error nothing is left of it.
func (p *Pending) Add(ctx context.Context, m Manifest) (*Manifest, error) {
	defer p.Discard()
	d, err := Open(p.Dir)
	if err != nil {
		return nil, fmt.Errorf("add snapshot: %w", err)
	}
	m.ID, m.Spec, m.Created = p.id, d.Spec, time.Now().UTC().Truncate(time.Second)
	if err := sign(ctx, d.dir, &m, p.store.keys); err != nil {
		return nil, fmt.Errorf("add snapshot: %w", err)
	}
	signed, err := current(d.dir, m.parts())
	if err == nil {
		err = signed.record(d.dir, p.store.keys)
	}
	if err != nil {
		return nil, fmt.Errorf("add snapshot: %w", err)
	}
	if err := p.store.publish(d.dir, &m, false); err != nil {
		return nil, fmt.Errorf("add snapshot: %w", err)
	}
	return &m, nil
}

// publish checks that the name is free and, but for an orphan, the parent there, and then lets the snapshot appear, in one
// step.
func (s *Store) publish(from string, m *Manifest, orphan bool) error {
	unlock, err := s.lockStore()
	if err != nil {
		return err
	}
	defer unlock()
	if m.Name != "" && !namePattern.MatchString(m.Name) {
		return fmt.Errorf("name %q: use letters, digits, '_', '.' and '-', at most 63, first a letter or digit", m.Name)
	}
	all, err := s.List()
	if err != nil {
		return err
	}
	parent := m.Parent == "" || orphan
	for _, other := range all {
		if m.Name != "" && other.Name == m.Name {
			return fmt.Errorf("the name %s is taken by %s: remove that snapshot (spore snapshot rm %s) or use another name", m.Name, other.ID, m.Name)
		}
		parent = parent || other.ID == m.Parent
	}
	if !parent {
		return fmt.Errorf("its parent %s has been removed meanwhile", m.Parent)
	}
	return os.Rename(from, s.path(m.ID))
}

// List returns all snapshots, parents before children. One whose manifest does not verify is an error that names it.
func (s *Store) List() ([]*Manifest, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []*Manifest
	for _, e := range entries {
		if !idPattern.MatchString(e.Name()) {
			continue
		}
		m, err := readManifest(s.path(e.Name()), e.Name(), s.keys)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w (spore snapshot rm --damaged %s removes it)", e.Name(), err, e.Name())
		}
		all = append(all, m)
	}
	sort.Slice(all, func(i, j int) bool {
		if !all[i].Created.Equal(all[j].Created) {
			return all[i].Created.Before(all[j].Created)
		}
		return all[i].ID < all[j].ID
	})
	return all, nil
}

// Find returns the snapshot with that name, id, or unambiguous beginning of an id (4 digits or more).
func (s *Store) Find(ref string) (*Manifest, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Manifest
	for _, m := range all {
		if m.Name == ref && ref != "" || m.ID == ref {
			return m, nil
		}
		if len(ref) >= 4 && strings.HasPrefix(m.ID, ref) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("%w: %s (spore snapshot list lists them)", ErrNotFound, ref)
	}
	return nil, fmt.Errorf("%w: %s begins %d ids: write more of it", ErrNotFound, ref, len(found))
}

// Size is what a snapshot takes on the disk, in bytes.
func (s *Store) Size(m *Manifest) (int64, error) {
	return (&Dormant{dir: s.path(m.ID)}).size(slices.Concat(m.parts(), []string{specFile}))
}

// ErrChildren is matched by the error of Remove for a snapshot that others build on.
var ErrChildren = errors.New("it has children")

// Remove deletes a snapshot, and with children all that descend from it, leaves first: whatever moment it ends at, no
// snapshot has lost its parent. Without, one that has children is refused. It returns what was removed.
func (s *Store) Remove(m *Manifest, children bool) ([]*Manifest, error) {
	unlock, err := s.lockStore()
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	doomed := descendants(all, m)
	if len(doomed) > 1 && !children {
		return nil, fmt.Errorf("remove snapshot %s: %w, %d of them: remove them first, or all at once with --children", m.Ref(), ErrChildren, len(doomed)-1)
	}
	var gone []*Manifest
	for i := len(doomed) - 1; i >= 0; i-- {
		if err := (&Dormant{dir: s.path(doomed[i].ID)}).Remove(); err != nil {
			return gone, err
		}
		gone = append(gone, doomed[i])
	}
	return gone, nil
}

// descendants are m and all below it, parents before children.
func descendants(all []*Manifest, m *Manifest) []*Manifest {
	list := []*Manifest{m}
	for i := 0; i < len(list); i++ {
		for _, other := range all {
			if other.Parent == list[i].ID {
				list = append(list, other)
			}
		}
	}
	return list
}

// RemoveDamaged deletes the snapshot with that id whatever is in it.
func (s *Store) RemoveDamaged(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%w: %s: a damaged snapshot is named by its whole id", ErrNotFound, id)
	}
	unlock, err := s.lockStore()
	if err != nil {
		return err
	}
	defer unlock()
	return (&Dormant{dir: s.path(id)}).Remove()
}

// Sweep deletes what killed processes left: snapshots that were being made or removed.
func (s *Store) Sweep() error {
	unlock, err := s.lockStore()
	if err != nil {
		return err
	}
	defer unlock()
	locks, err := filepath.Glob(filepath.Join(s.dir, stagingDir, "*.lock"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range locks {
		lock, err := flock.Open(path, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // its maker lives
		}
		p := &Pending{Dir: strings.TrimSuffix(path, ".lock"), lock: lock}
		errs = append(errs, p.Discard())
	}
	return errors.Join(append(errs, Sweep(s.dir))...)
}
