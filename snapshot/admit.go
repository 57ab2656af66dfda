package snapshot

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A snapshot is verified once, when it is admitted, and not when something wakes from it: hashing takes longer than
// waking. What was verified is remembered by inode, size and times of each file. Times of change cannot be set by whoever
// can write the files, and the record is authenticated with the installation's key; a file that is not as it was is
// verified again.
type admitted struct {
	Manifest string                  `json:"manifest"` // hash of it
	Files    map[string]fileIdentity `json:"files"`
	MAC      string                  `json:"mac,omitempty"`
}

type fileIdentity struct {
	Device, Inode     uint64
	Size              int64
	Mtime, MtimeNanos int64
	Ctime, CtimeNanos int64
}

func identify(path string) (fileIdentity, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileIdentity{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileIdentity{
		Device: st.Dev, Inode: st.Ino, Size: st.Size, Mtime: st.Mtim.Sec, MtimeNanos: st.Mtim.Nsec, Ctime: st.Ctim.Sec, CtimeNanos: st.Ctim.Nsec,
	}, nil
}

// current is the record of the files as they are now, without its MAC.
func current(dir string, parts []string) (*admitted, error) {
	manifest, err := readBounded(filepath.Join(dir, manifestFile), maxManifest)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(manifest)
	a := &admitted{Manifest: hex.EncodeToString(sum[:]), Files: map[string]fileIdentity{}}
	for _, name := range parts {
		if a.Files[name], err = identify(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// seal authenticates the record.
func (a *admitted) seal(k *Keys) ([]byte, error) {
	private, err := k.own()
	if err != nil {
		return nil, err
	}
	a.MAC = ""
	b, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(append([]byte("spore admitted snapshot\x00"), private.Seed()...))
	mac := hmac.New(sha256.New, key[:])
	mac.Write(b)
	a.MAC = hex.EncodeToString(mac.Sum(nil))
	return json.Marshal(a)
}

// isAdmitted reports whether the snapshot in dir is what was verified.
func isAdmitted(dir string, parts []string, k *Keys) bool {
	have, err := readBounded(filepath.Join(dir, admittedFile), maxManifest)
	if err != nil {
		return false
	}
	now, err := current(dir, parts)
	if err != nil {
		return false
	}
	want, err := now.seal(k)
	return err == nil && hmac.Equal(bytes.TrimSpace(have), want)
}

// record remembers that the snapshot in dir has been verified as it was then.
func (a *admitted) record(dir string, k *Keys) error {
	b, err := a.seal(k)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, admittedFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, admittedFile))
}

// Admit makes a snapshot ready to wake: it verifies it, unless nothing has touched it since that was done last. An encrypted
// one is ErrEncrypted: see Unlock.
func (s *Store) Admit(ctx context.Context, m *Manifest) (*Dormant, error) {
	if m.Encryption != nil {
		return nil, fmt.Errorf("snapshot %s: %w, and opens with %.32q: only 'spore run --from' and 'spore lab twins' take it, with --unlock", m.Ref(), ErrEncrypted, m.Encryption.Key)
	}
	return s.admitAny(ctx, m)
}

// admitAny is Admit for encrypted ones as well.
func (s *Store) admitAny(ctx context.Context, m *Manifest) (*Dormant, error) {
	d := &Dormant{Spec: m.Spec, dir: s.path(m.ID)}
	if isAdmitted(d.dir, m.parts(), s.keys) {
		return d, nil
	}
	if err := m.admit(ctx, d, s.keys); err != nil {
		return nil, fmt.Errorf("admit snapshot %s: %w", m.Ref(), err)
	}
	return d, nil
}

// admit verifies d and remembers it. The record is of the files as they were before they were read: a change meanwhile is an
// error, and one that comes later shows the next time.
func (m *Manifest) admit(ctx context.Context, d *Dormant, k *Keys) error {
	before, err := current(d.dir, m.parts())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := m.verify(ctx, d); err != nil {
		return err
	}
	after, err := current(d.dir, m.parts())
	if err != nil {
		return err
	}
	for name, id := range before.Files {
		if after.Files[name] != id {
			return fmt.Errorf("%w: %s changes while it is verified", ErrDamaged, name)
		}
	}
	return before.record(d.dir, k)
}

// Verify compares everything with what was signed, whatever is remembered of an earlier time.
func (s *Store) Verify(ctx context.Context, m *Manifest) error {
	if err := m.verify(ctx, &Dormant{Spec: m.Spec, dir: s.path(m.ID)}); err != nil {
		return fmt.Errorf("snapshot %s: %w", m.Ref(), err)
	}
	return nil
}
