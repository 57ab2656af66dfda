package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// ErrNotFound says that no sandbox has that name or id.
var ErrNotFound = errors.New("no such sandbox")

// Store is the directory of all sandboxes, one directory each. Any number of processes may use it at once:
// a lock on the store covers names, a lock on each sandbox is held by its supervisor for as long as it lives.
type Store struct{ dir string }

// Names of the files in a sandbox's directory.
const (
	configFile   = "config.json"
	stateFile    = "state.json"
	lockFile     = "lock"
	socketFile   = "socket"
	writableFile = "writable.ext4"
	consoleFile  = "console.log"
	logFile      = "output.log"
	programFile  = "program"
)

// OpenStore opens the store at dir and makes the directory if it is missing.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open sandbox store: %w", err)
	}
	return &Store{dir: dir}, nil
}

// lock takes the store's lock until the returned function is called.
func (s *Store) lock() (unlock func(), err error) {
	f, err := flock.Open(filepath.Join(s.dir, lockFile), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock sandbox store: %w", err)
	}
	return func() { f.Close() }, nil
}

// Origin is what a new sandbox begins as.
type Origin struct {
	Writable func(path string) error // makes the file of the writable layer at that path
	From     string                  // directory of the dormant machine that it wakes from; "" boots
	Main     uint64                  // number of the process in From that is its command; 0 starts Config.Args
	Snapshot string                  // id of the snapshot that From is of, if it is of one
	Program  *os.File                // a regular file, copied into the record, that the guest gets before its command; nil for none
}

// Create writes the record of a new sandbox. It fills in the ID, the time and Program, and fails if the name is taken. When the
// writable layer cannot be made, nothing is created.
func (s *Store) Create(cfg Config, from Origin) (*Sandbox, error) {
	if cfg.ID == "" {
		cfg.ID = newID()
	}
	cfg.Created, cfg.Program = time.Now().UTC(), from.Program != nil
	if cfg.Hostname == "" {
		cfg.Hostname = cfg.Name
	}
	if cfg.Hostname == "" {
		cfg.Hostname = cfg.ID
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if cfg.Name != "" {
		if other, err := s.Find(cfg.Name); err == nil {
			return nil, fmt.Errorf("%w: the name %s is taken by %s: remove that sandbox (spore rm %s) or use another name", ErrConfig, cfg.Name, other.Config.ID, cfg.Name)
		}
	}
	sb := &Sandbox{Config: cfg, dir: filepath.Join(s.dir, cfg.ID)}
	tmp := sb.dir + ".new"
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	if !cfg.MemoryDisk {
		err = from.Writable(filepath.Join(tmp, writableFile))
	}
	if err == nil && cfg.Program {
		err = keepProgram(filepath.Join(tmp, programFile), from.Program)
	}
	if err == nil {
		err = sb.writeNew(tmp, State{Status: Created, From: from.From, Main: from.Main, Snapshot: from.Snapshot})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create sandbox: %w", err), os.RemoveAll(tmp))
	}
	return sb, nil
}

// writeNew fills the directory tmp and makes it the sandbox's.
func (sb *Sandbox) writeNew(tmp string, st State) error {
	if err := writeJSON(filepath.Join(tmp, configFile), sb.Config); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(tmp, stateFile), st); err != nil {
		return err
	}
	return os.Rename(tmp, sb.dir)
}

func newID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// List returns every sandbox, oldest first. A directory that is not a whole record is left out.
func (s *Store) List() ([]*Sandbox, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var all []*Sandbox
	for _, e := range entries {
		if !idPattern.MatchString(e.Name()) {
			continue
		}
		sb, err := s.load(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, sb)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Config.Created.Before(all[j].Config.Created) })
	return all, nil
}

func (s *Store) load(id string) (*Sandbox, error) {
	sb := &Sandbox{dir: filepath.Join(s.dir, id)}
	if err := readJSON(filepath.Join(sb.dir, configFile), &sb.Config); err != nil {
		return nil, fmt.Errorf("load sandbox %s: %w", id, err)
	}
	return sb, nil
}

// Find returns the sandbox with that name, id, or unambiguous beginning of an id (4 digits or more).
func (s *Store) Find(ref string) (*Sandbox, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Sandbox
	for _, sb := range all {
		if sb.Config.Name == ref && ref != "" || sb.Config.ID == ref {
			return sb, nil
		}
		if len(ref) >= 4 && strings.HasPrefix(sb.Config.ID, ref) {
			found = append(found, sb)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("%w: %s (spore ls --all lists them)", ErrNotFound, ref)
	}
	return nil, fmt.Errorf("%w: %s begins %d ids: write more of it", ErrNotFound, ref, len(found))
}

// writeJSON replaces the file at path by v, whole or not at all.
func writeJSON(path string, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(body, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// maxRecord bounds a record read back; ours are a few kilobytes.
const maxRecord = 4 << 20

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() > maxRecord {
		return fmt.Errorf("%s: not a record", path)
	}
	if err := json.NewDecoder(f).Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
