package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spore/internal/contextio"
	"spore/internal/sparse"
)

// Encryption says how the parts of a snapshot are encrypted. The manifest covers what is on the disk: it is verified
// without the key.
type Encryption struct {
	Cipher string  `json:"cipher"`
	Key    KeyKind `json:"key"` // what opens it
}

// ErrEncrypted is matched by the error of a snapshot that is encrypted, where it must not be.
var ErrEncrypted = errors.New("the snapshot is encrypted")

// wrappedFile is the part that holds the wrapped key.
const (
	wrappedFile = "key"
	maxWrapped  = 64 << 10
)

// parts are the files that the manifest covers.
func (m *Manifest) parts() []string {
	if m.Encryption == nil {
		return plainParts
	}
	return sealedParts
}

// AddEncrypted seals a dormant machine, which is best in memory (OpenVolatile), and makes that a snapshot as Add does. The
// machine itself is the caller's to remove.
func (p *Pending) AddEncrypted(ctx context.Context, plain *Dormant, m Manifest, w *Wrap) (*Manifest, error) {
	if err := p.seal(ctx, plain, w); err != nil {
		return nil, errors.Join(fmt.Errorf("encrypt snapshot: %w", err), p.Discard())
	}
	m.Encryption = &Encryption{cipherName, w.Kind}
	return p.Add(ctx, m)
}

func (p *Pending) seal(ctx context.Context, plain *Dormant, w *Wrap) error {
	key, wrapped, err := w.newKey()
	if err != nil {
		return err
	}
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		return err
	}
	for _, name := range plainParts {
		if err := p.sealPart(ctx, plain, name, key); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return errors.Join(os.WriteFile(filepath.Join(p.Dir, wrappedFile), wrapped, 0o600), writeSpec(p.Dir, plain.Spec))
}

func (p *Pending) sealPart(ctx context.Context, plain *Dormant, name string, key []byte) error {
	from, err := plain.open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(p.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	s, err := newSealWriter(to, key, name)
	if err == nil && name == memoryFile {
		err = sparse.Pack(ctx, s, from, plain.Spec.Memory)
	} else if err == nil {
		_, err = io.Copy(s, contextio.Reader(ctx, from))
	}
	if err == nil {
		err = s.Close()
	}
	return errors.Join(err, to.Close())
}

// Unlock decrypts a snapshot into the directory of to, which must be in memory (OpenVolatile), and returns what machines wake
// from there. It is verified first. The caller discards to when they have woken.
func (s *Store) Unlock(ctx context.Context, m *Manifest, u *Unwrap, to *Pending) (*Dormant, error) {
	sealed, err := s.admitAny(ctx, m)
	if err != nil {
		return nil, err
	}
	if m.Encryption == nil {
		return nil, fmt.Errorf("unlock snapshot %s: it is not encrypted", m.Ref())
	}
	if m.Encryption.Cipher != cipherName {
		return nil, fmt.Errorf("unlock snapshot %s: it is encrypted by %.32q, this build knows %s", m.Ref(), m.Encryption.Cipher, cipherName)
	}
	if u.Kind != m.Encryption.Key {
		return nil, fmt.Errorf("unlock snapshot %s: %w: it opens with %.32q, this is %q", m.Ref(), ErrKey, m.Encryption.Key, u.Kind)
	}
	wrapped, err := readBounded(filepath.Join(sealed.dir, wrappedFile), maxWrapped)
	if err == nil {
		err = sealed.unseal(ctx, u, wrapped, to.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("unlock snapshot %s: %w", m.Ref(), err)
	}
	return Open(to.Dir)
}

func (d *Dormant) unseal(ctx context.Context, u *Unwrap, wrapped []byte, dir string) error {
	key, err := u.key(wrapped)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if !inMemory(dir) {
		return fmt.Errorf("%s is on a disk: an encrypted snapshot is decrypted into memory only", dir)
	}
	for _, name := range plainParts {
		if err := d.unsealPart(ctx, name, key, dir); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return writeSpec(dir, d.Spec)
}

func (d *Dormant) unsealPart(ctx context.Context, name string, key []byte, dir string) error {
	from, err := d.open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	o, err := newOpenReader(from, key, name)
	if err == nil && name == memoryFile {
		err = sparse.Unpack(ctx, to, o, d.Spec.Memory)
	} else if err == nil {
		_, err = io.Copy(to, contextio.Reader(ctx, o))
	}
	return errors.Join(err, to.Close())
}

// destroyKey makes an encrypted machine unreadable before the rest of it is deleted. A disk that keeps what is overwritten
// keeps a key that is wrapped.
func destroyKey(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, wrappedFile), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte{0}, int(min(st.Size(), maxWrapped))))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, wrappedFile)))
}

// errNoMemory says that a host has no file system in memory that is ours to use.
var errNoMemory = errors.New("no file system in memory was found: an encrypted snapshot needs one (mount -t tmpfs tmpfs /dev/shm)")

// OpenVolatile opens a store in memory, in the first of the directories that is on tmpfs: for what must not be on a disk, and
// only while it is needed. It is the user's own; what killed processes left is deleted.
func OpenVolatile(dirs ...string) (*Store, error) {
	for _, dir := range dirs {
		if dir == "" || !inMemory(dir) {
			continue
		}
		path := volatilePath(dir)
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			continue
		}
		if isOurs(path) {
			s := &Store{dir: path}
			return s, s.Sweep()
		}
	}
	return nil, errNoMemory
}

// SweepVolatile deletes what killed processes left where OpenVolatile has made a store, and makes none.
func SweepVolatile(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		if path := volatilePath(dir); dir != "" && inMemory(dir) && isOurs(path) {
			errs = append(errs, (&Store{dir: path}).Sweep())
		}
	}
	return errors.Join(errs...)
}

func volatilePath(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("spore-%d", os.Geteuid()))
}

// isOurs reports whether path is a directory of our own that nobody else may enter: others may write to /dev/shm, and a
// link or a directory of theirs is not for us.
func isOurs(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid() && st.Mode&0o077 == 0
}

func inMemory(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC)
}
