package network

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// What is in the directory of networks.
const (
	lockFile       = "lock"        // covers the networks: their records, bridges and rules
	networksDir    = "networks"    // KEY.json, and KEY.nft: the rules that were loaded last
	attachmentsDir = "attachments" // ID.json, ID.lock, which whoever works on it holds, and ID.of, a link that says whose it is if it was pooled
	netnsDir       = "netns"       // ID: a namespace, by a bind mount
	addressesDir   = "addresses"   // host-local's, a directory for each network
	resultsDir     = "cni"         // libcni's
)

// phase is where an attachment is in its life. Its record is written before anything else of it is there, and removed last.
//
//	adding ──► ready ──► removing
//	   └──────────────────┘
type phase string

const (
	phaseAdding   phase = "adding"   // its lock is held, or its maker was killed
	phasePooled   phase = "pooled"   // its lock is held by the pool, or the pool was killed
	phaseReady    phase = "ready"    // it lives as long as its sandbox
	phaseRemoving phase = "removing" // its lock is held, or its remover was killed
)

// record is what is kept of an attachment: all that is needed to take it back, whatever has changed meanwhile.
type record struct {
	Attachment
	Phase   phase           `json:"phase"`
	Worker  int             `json:"worker_pid"` // who wrote this
	Created time.Time       `json:"created"`
	List    json.RawMessage `json:"cni"` // the configuration list that it is made with
	Bridge  string          `json:"bridge,omitempty"`
	Granted []netip.Addr    `json:"granted,omitempty"` // of the host's own addresses
}

// newID is the name of an attachment.
func newID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// works reports whether the process that wrote the record is there.
func (r record) works() bool {
	return r.Worker > 0 && unix.Kill(r.Worker, 0) != unix.ESRCH
}

// validID reports whether s is 12 lower-case hexadecimal digits, as the ids of sandboxes and attachments are.
func validID(s string) bool {
	return len(s) == 12 && strings.Trim(s, "0123456789abcdef") == ""
}

func (n *Networks) path(parts ...string) string {
	return filepath.Join(append([]string{n.cfg.Dir}, parts...)...)
}

// lock takes the lock of the directory until the returned function is called.
func (n *Networks) lock() (unlock func(), err error) {
	f, err := flock.Open(n.path(lockFile), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock networks: %w", err)
	}
	return func() { f.Close() }, nil
}

// hostLock is held while a bridge comes up: whoever sees that no route of the host covers its subnet must have its own there before anybody else
// looks, with another directory of networks too.
const hostLock = "/run/spore-networks.lock"

func lockHost() (unlock func(), err error) {
	f, err := flock.Open(hostLock, unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock the host's networks: %w", err)
	}
	return func() { f.Close() }, nil
}

// errBusy says that another process works on an attachment.
var errBusy = errors.New("another process works on it")

// lockPatience is how long one waits for whoever works on an attachment: a plugin whose spore was killed ends by itself, and
// holds the lock until then.
const lockPatience = 30 * time.Second

// lockAttachment takes the lock of an attachment within patience. The file is inherited by what is started under it.
func (n *Networks) lockAttachment(id string, patience time.Duration) (*os.File, error) {
	path := n.path(attachmentsDir, id+".lock")
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		f, err := flock.Open(path, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && sameFile(f, path):
			return f, nil
		case err == nil: // whoever had it has removed it
			f.Close()
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("lock attachment %s: %w", id, err)
		case time.Now().After(end):
			return nil, fmt.Errorf("lock attachment %s: %w", id, errBusy)
		}
	}
}

// sameFile reports whether path still leads to f.
func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// loadAttachment reads the record of an attachment.
func (n *Networks) loadAttachment(id string) (record, error) {
	var r record
	err := readJSON(n.path(attachmentsDir, id+".json"), &r)
	if err == nil && r.ID != id {
		err = fmt.Errorf("%s.json: it is the record of %q", id, r.ID)
	}
	if err == nil && r.Phase == phasePooled {
		if whose, err := os.Readlink(n.path(attachmentsDir, id+".of")); err == nil && validID(whose) {
			r.Sandbox, r.Phase = whose, phaseReady
		}
	}
	return r, err
}

func (n *Networks) saveAttachment(r record) error {
	r.Worker = os.Getpid()
	return writeJSON(n.path(attachmentsDir, r.ID+".json"), r)
}

// attachments returns the ids of all attachments that have a record or a lock, or a namespace without either.
func (n *Networks) attachments() ([]string, error) {
	seen := map[string]bool{}
	var ids []string
	for _, dir := range []string{attachmentsDir, netnsDir} {
		entries, err := os.ReadDir(n.path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list attachments: %w", err)
		}
		for _, e := range entries {
			id, _, _ := strings.Cut(e.Name(), ".")
			if validID(id) && !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// records returns all attachments that have a record which keep wants.
func (n *Networks) records(keep func(record) bool) ([]record, error) {
	ids, err := n.attachments()
	if err != nil {
		return nil, err
	}
	var all []record
	for _, id := range ids {
		r, err := n.loadAttachment(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // not made yet, or removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if keep(r) {
			all = append(all, r)
		}
	}
	return all, nil
}

// alone reports whether no other attachment than that is to its network.
func (n *Networks) alone(r record) (bool, error) {
	ids, err := n.attachments()
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		if id == r.ID {
			continue
		}
		other, err := n.loadAttachment(id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil && other.Choice == r.Choice {
			return false, nil
		}
	}
	return true, nil
}

// writeJSON replaces the file at path by v, whole or not at all.
func writeJSON(path string, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return replaceFile(path, append(body, '\n'))
}

// replaceFile writes the file at path, whole or not at all. Its writer holds a lock: there is one temporary file.
func replaceFile(path string, body []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// maxRecord bounds a record read back, in bytes: ours are a few thousand.
const maxRecord = 1 << 20

func readJSON(path string, v any) error {
	body, err := readBounded(path, maxRecord)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode %s: %w", filepath.Base(path), err)
	}
	return nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return body, err
}

// removeFile removes a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
