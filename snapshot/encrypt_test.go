package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"spore/internal/testenv"
)

var tmpfs = testenv.Need{Name: "tmpfs", Probe: func() error {
	if !inMemory("/dev/shm") {
		return errors.New("/dev/shm is not in memory")
	}
	return nil
}}

// disk is a temporary directory on one.
var disk = testenv.Need{Name: "disk", Probe: func() error {
	if inMemory(os.TempDir()) {
		return fmt.Errorf("%s is in memory: there is no disk to refuse", os.TempDir())
	}
	return nil
}}

// newVolatile is a store in memory of the test's own.
func newVolatile(t *testing.T) *Store {
	t.Helper()
	testenv.Require(t, tmpfs)
	dir, err := os.MkdirTemp("/dev/shm", "spore-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := OpenVolatile("", "/nowhere", t.TempDir(), dir)
	if err != nil || !strings.HasPrefix(s.dir, dir) {
		t.Fatalf("%+v, %v", s, err)
	}
	return s
}

// begin is a pending snapshot that is discarded with the test.
func begin(t *testing.T, s *Store) *Pending {
	t.Helper()
	p, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Discard() })
	return p
}

func takeEncrypted(t *testing.T, s, volatile *Store, w *Wrap) *Manifest {
	t.Helper()
	plain := begin(t, volatile)
	d := draft(t, plain.Dir, 'a')
	m, err := begin(t, s).AddEncrypted(t.Context(), d, Manifest{Name: "secret", Sandbox: "0123456789ab", Origin: json.RawMessage(`{}`)}, w)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func keyFilePair(t *testing.T) (*Wrap, *Unwrap) {
	t.Helper()
	w, err1 := WrapKeyFile(bytes.Repeat([]byte{1}, minKeyFile))
	u, err2 := UnwrapKeyFile(bytes.Repeat([]byte{1}, minKeyFile))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return w, u
}

// keyKinds are a wrap, what opens it, and what is of the same kind and does not.
func keyKinds(t *testing.T) map[KeyKind][3]any {
	t.Helper()
	one, err1 := age.GenerateX25519Identity()
	two, err2 := age.GenerateHybridIdentity() // post-quantum
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	must := func(x any, err error) any {
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	return map[KeyKind][3]any{
		KeyPassphrase: {must(WrapPassphrase("a b")), must(UnwrapPassphrase("a b")), must(UnwrapPassphrase("a c"))},
		KeyFile: {
			must(WrapKeyFile(bytes.Repeat([]byte{1}, 32))), must(UnwrapKeyFile(bytes.Repeat([]byte{1}, 32))),
			must(UnwrapKeyFile(bytes.Repeat([]byte{1}, 33))),
		},
		KeyAge: {
			must(WrapAge(strings.NewReader(one.Recipient().String()))), must(UnwrapAge(strings.NewReader(one.String()))),
			must(UnwrapAge(strings.NewReader(two.String()))),
		},
	}
}

// TestEncryptedSnapshot takes one with each kind of key. Nothing of it is on the disk; what opens it gives it back.
func TestEncryptedSnapshot(t *testing.T) {
	for kind, keys := range keyKinds(t) {
		t.Run(string(kind), func(t *testing.T) {
			s, volatile := newStore(t), newVolatile(t)
			m := takeEncrypted(t, s, volatile, keys[0].(*Wrap))
			noPlaintext(t, s.dir)
			if m.Version != 2 || m.Encryption.Key != kind {
				t.Errorf("manifest %+v", m)
			}
			if _, err := s.Admit(t.Context(), m); !errors.Is(err, ErrEncrypted) {
				t.Errorf("admitted without a key: %v", err)
			}
			if err := s.Verify(t.Context(), m); err != nil {
				t.Errorf("it is verified without the key: %v", err)
			}
			to := begin(t, volatile)
			if _, err := s.Unlock(t.Context(), m, keys[2].(*Unwrap), to); !errors.Is(err, ErrKey) {
				t.Errorf("the wrong key: %v", err)
			}
			if _, err := os.Lstat(to.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the wrong key left something: %v", err)
			}
			d, err := s.Unlock(t.Context(), m, keys[1].(*Unwrap), to)
			if err != nil {
				t.Fatal(err)
			}
			sameAsDraft(t, d)
		})
	}
}

// noPlaintext looks for a run of the draft's letter in every file.
func noPlaintext(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("aaaaaaaa")) {
			t.Errorf("%s has plaintext", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func sameAsDraft(t *testing.T, d *Dormant) {
	t.Helper()
	want := draft(t, filepath.Join(t.TempDir(), "want"), 'a')
	for _, name := range plainParts {
		got, err1 := os.ReadFile(filepath.Join(d.dir, name))
		want, err2 := os.ReadFile(filepath.Join(want.dir, name))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, or others: %v", name, len(got), len(want), err)
		}
	}
	if d.Spec != want.Spec {
		t.Errorf("%+v, want %+v", d.Spec, want.Spec)
	}
}

// TestSNAP05Encrypted changes every file of an encrypted snapshot. It is refused, and nothing is decrypted.
func TestSNAP05Encrypted(t *testing.T) {
	w, u := keyFilePair(t)
	volatile := newVolatile(t)
	for _, file := range sealedParts {
		s := newStore(t)
		m := takeEncrypted(t, s, volatile, w)
		tamper(t, filepath.Join(s.path(m.ID), file), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		to := begin(t, volatile)
		if _, err := s.Unlock(t.Context(), m, u, to); !errors.Is(err, ErrDamaged) {
			t.Errorf("SNAP-05: %s: %v", file, err)
		}
		if _, err := os.Lstat(to.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("SNAP-05: %s: something was decrypted: %v", file, err)
		}
	}
}

// TestUnlockWantsMemory gives it a directory on a disk.
func TestUnlockWantsMemory(t *testing.T) {
	w, u := keyFilePair(t)
	testenv.Require(t, disk)
	s := newStore(t)
	m := takeEncrypted(t, s, newVolatile(t), w)
	to := begin(t, s)
	if _, err := s.Unlock(t.Context(), m, u, to); err == nil || !strings.Contains(err.Error(), "on a disk") {
		t.Errorf("unlocked to a disk: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(to.Dir, "*")); len(left) > 0 {
		t.Errorf("on the disk: %v", left)
	}
	if _, err := OpenVolatile(t.TempDir()); !errors.Is(err, errNoMemory) {
		t.Errorf("a store in memory on a disk: %v", err)
	}
}

// TestVolatileIsOurs puts something of another's in its place.
func TestVolatileIsOurs(t *testing.T) {
	testenv.Require(t, tmpfs)
	for name, put := range map[string]func(path string) error{
		"a link":            func(path string) error { return os.Symlink(t.TempDir(), path) },
		"open to others":    func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o755)) },
		"a file in its way": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		dir, err := os.MkdirTemp("/dev/shm", "spore-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := put(filepath.Join(dir, fmt.Sprintf("spore-%d", os.Geteuid()))); err != nil {
			t.Fatal(err)
		}
		if s, err := OpenVolatile(dir); !errors.Is(err, errNoMemory) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// TestEncryptedTravels exports one, imports it elsewhere, opens it there, and removes it.
func TestEncryptedTravels(t *testing.T) {
	w, u := keyFilePair(t)
	from, to, volatile := newStore(t), newStore(t), newVolatile(t)
	var archive bytes.Buffer
	if err := from.Export(t.Context(), takeEncrypted(t, from, volatile, w), &archive); err != nil {
		t.Fatal(err)
	}
	public, err := from.Keys().Public()
	if err == nil {
		err = to.Keys().Trust("from", public)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := to.Import(t.Context(), &archive)
	if err != nil {
		t.Fatal(err)
	}
	noPlaintext(t, to.dir)
	d, err := to.Unlock(t.Context(), m, u, begin(t, volatile))
	if err != nil {
		t.Fatal(err)
	}
	sameAsDraft(t, d)
	// An open descriptor sees what rm does to the wrapped key before the name is gone.
	key, err := os.Open(filepath.Join(to.path(m.ID), wrappedFile))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	if _, err := to.Remove(m, false); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(key); err != nil || len(bytes.Trim(b, "\x00")) > 0 || len(b) == 0 {
		t.Errorf("the key is %d bytes of which not all are 0: %v", len(b), err)
	}
}

// TestSealedParts seals parts of sizes around a chunk's, and then changes what a manifest would cover too.
func TestSealedParts(t *testing.T) {
	key := bytes.Repeat([]byte{5}, keySize)
	seal := func(size int, part string) []byte {
		var sealed bytes.Buffer
		s, err := newSealWriter(&sealed, key, part)
		if err == nil {
			_, err = io.Copy(s, io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{6}, size/2)), bytes.NewReader(bytes.Repeat([]byte{7}, size-size/2))))
		}
		if err = errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		return sealed.Bytes()
	}
	open := func(sealed []byte, part string) ([]byte, error) {
		o, err := newOpenReader(bytes.NewReader(sealed), key, part)
		if err != nil {
			t.Fatal(err)
		}
		return io.ReadAll(o)
	}
	const whole = chunkSize + 16
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize, 3*chunkSize + 5} {
		b := seal(size, "memory")
		plain, err := open(b, "memory")
		if want := append(bytes.Repeat([]byte{6}, size/2), bytes.Repeat([]byte{7}, size-size/2)...); err != nil || !bytes.Equal(plain, want) {
			t.Errorf("%d bytes: %d came back, %v", size, len(plain), err)
		}
		for name, change := range map[string]func() []byte{
			"cut by a byte":  func() []byte { return b[:len(b)-1] },
			"another part":   func() []byte { return seal(size, "disk") },
			"a byte more":    func() []byte { return append(bytes.Clone(b), 0) },
			"nothing":        func() []byte { return nil },
			"once more":      func() []byte { return append(bytes.Clone(b), b...) },
			"cut by a chunk": func() []byte { return b[:max(0, (len(b)-1)/whole*whole)] },
			"first two swapped": func() []byte {
				if len(b) < 2*whole {
					return nil
				}
				return append(append(bytes.Clone(b[whole:2*whole]), b[:whole]...), b[2*whole:]...)
			},
		} {
			if _, err := open(change(), "memory"); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes, %s: %v", size, name, err)
			}
		}
	}
}

// TestSweepVolatile leaves plain files as a killed process does. The next sweep deletes them, and not those of one that lives.
func TestSweepVolatile(t *testing.T) {
	s := newVolatile(t)
	dead, alive := begin(t, s), begin(t, s)
	for _, p := range []*Pending{dead, alive} {
		draft(t, p.Dir, 'a')
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	dead.lock = nil
	if err := SweepVolatile("", "/nowhere", filepath.Dir(s.dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dead.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead one's: %v", err)
	}
	if _, err := os.Lstat(alive.Dir); err != nil {
		t.Errorf("the living one's: %v", err)
	}
}

func TestKeyFilesAreLongEnough(t *testing.T) {
	if _, err := WrapKeyFile([]byte("hunter2\n")); err == nil || !strings.Contains(err.Error(), "random") {
		t.Errorf("a short key file: %v", err)
	}
	if _, err := WrapAge(strings.NewReader("# nobody\n")); err == nil {
		t.Error("no recipients were taken")
	}
}
