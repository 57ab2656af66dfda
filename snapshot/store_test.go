package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/sparse"
)

const page = 4096

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := OpenStore(filepath.Join(dir, "snapshots"), OpenKeys(filepath.Join(dir, "keys")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// draft makes a dormant machine at dir, as a supervisor does: 64 pages of memory, three of them the letter.
func draft(t *testing.T, dir string, letter byte) *Dormant {
	t.Helper()
	d, err := NewDraft(dir)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for f, at := range map[*os.File]int64{d.State: 0, d.Memory: 40 * page, disk: 7 * page} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{letter}, 3*page), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.Truncate(16 * page); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.TakeDisk(t.Context(), disk, 16*page), d.Whole(64*page)); err != nil {
		t.Fatal(err)
	}
	done, err := d.Publish(Spec{CPUs: 1, Memory: 64 * page, Disk: 16 * page, Main: 1})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func take(t *testing.T, s *Store, name, parent string) *Manifest {
	t.Helper()
	p, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	draft(t, p.Dir, 'a')
	m, err := p.Add(t.Context(), Manifest{Name: name, Parent: parent, Sandbox: "0123456789ab", Origin: json.RawMessage(`{"image": "x"}`)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ids(all []*Manifest) (list []string) {
	for _, m := range all {
		list = append(list, m.ID)
	}
	return list
}

func TestTakeFindAdmit(t *testing.T) {
	s := newStore(t)
	m := take(t, s, "base", "")
	for _, ref := range []string{"base", m.ID, m.ID[:4]} {
		got, err := s.Find(ref)
		if err != nil || got.ID != m.ID {
			t.Errorf("find %s: %v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "bas", m.ID[:3], "ffffffffffffffff"} {
		if got, err := s.Find(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("find %q: %v, %v, want ErrNotFound", ref, got, err)
		}
	}
	d, err := s.Admit(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if d.Spec != m.Spec || d.Spec.Main != 1 || d.Spec.Memory != 64*page {
		t.Errorf("spec %+v", d.Spec)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := d.NewDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(disk); err != nil || len(b) != 16*page || b[7*page] != 'a' || b[6*page] != 0 {
		t.Errorf("disk of %d bytes, %v", len(b), err)
	}
	if err := d.NewDisk(t.Context(), disk); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a disk over another: %v", err)
	}
	if _, err := s.Begin(); err != nil {
		t.Fatal(err)
	}
}

func TestNamesAndParents(t *testing.T) {
	s := newStore(t)
	root := take(t, s, "root", "")
	for _, bad := range []struct{ name, parent, want string }{
		{"root", "", "taken"}, {"../x", "", "use letters"}, {"x", "0000000000000000", "removed meanwhile"},
	} {
		p, err := s.Begin()
		if err != nil {
			t.Fatal(err)
		}
		draft(t, p.Dir, 'a')
		_, err = p.Add(t.Context(), Manifest{Name: bad.name, Parent: bad.parent, Origin: json.RawMessage(`{}`)})
		if err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("name %q, parent %q: %v, want %q", bad.name, bad.parent, err, bad.want)
		}
	}
	child := take(t, s, "", root.ID)
	grandchild, sibling := take(t, s, "", child.ID), take(t, s, "", root.ID)
	if _, err := s.Remove(child, false); !errors.Is(err, ErrChildren) {
		t.Errorf("remove a parent: %v, want ErrChildren", err)
	}
	gone, err := s.Remove(child, true)
	if err != nil || !slices.Equal(ids(gone), []string{grandchild.ID, child.ID}) {
		t.Errorf("removed %v, %v: want leaves first", ids(gone), err)
	}
	all, err := s.List()
	if err != nil || len(all) != 2 || !slices.Contains(ids(all), root.ID) || !slices.Contains(ids(all), sibling.ID) {
		t.Errorf("left are %v, %v", ids(all), err)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, stagingDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
}

// tamper changes one thing in the directory of a snapshot, and leaves the times of change to the kernel.
func tamper(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(bytes.Clone(b)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil { // whoever can write can do this too
		t.Fatal(err)
	}
}

// TestSNAP05 flips bytes of, cuts off and swaps every file of a snapshot: it is refused with a reason, and nothing wakes.
func TestSNAP05(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	for _, file := range []string{stateFile, memoryFile, diskFile, manifestFile, signatureFile} {
		for name, change := range map[string]func([]byte) []byte{
			"first byte": flip(0), "a byte": flip(41*page + 17), "last byte": flip(-1),
			"shorter": func(b []byte) []byte { return b[:len(b)-1] }, "longer": func(b []byte) []byte { return append(b, 0x0a, 0x31) },
			"empty": func([]byte) []byte { return nil },
		} {
			s := newStore(t)
			m := take(t, s, "x", "")
			tamper(t, filepath.Join(s.path(m.ID), file), change)
			err := admitAgain(s, "x")
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUntrusted) && !strings.Contains(err.Error(), "version") {
				t.Errorf("SNAP-05: %s, %s: %v", file, name, err)
			}
		}
	}
}

func admitAgain(s *Store, ref string) error {
	m, err := s.Find(ref)
	if err == nil {
		_, err = s.Admit(context.Background(), m)
	}
	if err == nil {
		err = errors.New("it is admitted")
	}
	return err
}

// TestSNAP05Places puts other things in the place of a snapshot's memory.
func TestSNAP05Places(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, memory, other string) error{
		"another snapshot's": func(_ *testing.T, memory, other string) error { return os.Rename(other, memory) },
		"a link to it":       func(_ *testing.T, memory, other string) error { os.Remove(memory); return os.Symlink(other, memory) },
		"a pipe":             func(_ *testing.T, memory, _ string) error { os.Remove(memory); return unix.Mkfifo(memory, 0o600) },
		"nothing":            func(_ *testing.T, memory, _ string) error { return os.Remove(memory) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			m := take(t, s, "x", "")
			p, err := s.Begin()
			if err != nil {
				t.Fatal(err)
			}
			draft(t, p.Dir, 'b')
			other, err := p.Add(t.Context(), Manifest{Origin: json.RawMessage(`{}`)})
			if err != nil {
				t.Fatal(err)
			}
			if err := change(t, filepath.Join(s.path(m.ID), memoryFile), filepath.Join(s.path(other.ID), memoryFile)); err != nil {
				t.Fatal(err)
			}
			if err := admitAgain(s, "x"); !errors.Is(err, ErrDamaged) {
				t.Errorf("SNAP-05: %v, want ErrDamaged", err)
			}
		})
	}
}

// TestSNAP06 replays manifests: an older one of the same snapshot's place, another's, one that another key signed.
func TestSNAP06(t *testing.T) {
	s := newStore(t)
	a, b := take(t, s, "a", ""), take(t, s, "b", "")
	for _, file := range []string{manifestFile, signatureFile} {
		text, err := os.ReadFile(filepath.Join(s.path(a.ID), file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.path(b.ID), file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.List(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), b.ID) {
		t.Errorf("SNAP-06: another's manifest: %v", err)
	}
	if err := s.RemoveDamaged(b.ID); err != nil {
		t.Fatal(err)
	}
	// What was signed elsewhere is refused until its key is trusted.
	elsewhere := newStore(t)
	m := take(t, elsewhere, "c", "")
	if err := os.Rename(elsewhere.path(m.ID), s.path(m.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); !errors.Is(err, ErrUntrusted) {
		t.Errorf("SNAP-06: signed by a stranger: %v, want ErrUntrusted", err)
	}
	public, err := elsewhere.Keys().Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Keys().Trust("../x", public); err == nil {
		t.Error("a key was written outside its directory")
	}
	if err := s.Keys().Trust("elsewhere", public[1:]); err == nil {
		t.Error("half a key was trusted")
	}
	if err := s.Keys().Trust("elsewhere", public); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("c"); err != nil {
		t.Errorf("signed by a trusted key: %v", err)
	}
	if isAdmitted(s.path(m.ID), m.parts(), s.Keys()) {
		t.Error("SNAP-06: what another installation remembers was believed")
	}
	if err := admitAgain(s, "c"); err == nil || err.Error() != "it is admitted" {
		t.Errorf("admit: %v", err)
	}
}

// TestAdmittedOnce: the second time nothing is read, and a touch is enough to have it read again.
func TestAdmittedOnce(t *testing.T) {
	s := newStore(t)
	m := take(t, s, "x", "")
	if !isAdmitted(s.path(m.ID), m.parts(), s.Keys()) {
		t.Error("what was just signed is not admitted")
	}
	memory := filepath.Join(s.path(m.ID), memoryFile)
	if err := os.Chtimes(memory, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if isAdmitted(s.path(m.ID), m.parts(), s.Keys()) {
		t.Error("a file was touched, and it is still admitted")
	}
	if _, err := s.Admit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if !isAdmitted(s.path(m.ID), m.parts(), s.Keys()) {
		t.Error("it is not remembered that it was verified")
	}
	tamper(t, filepath.Join(s.path(m.ID), admittedFile), func(b []byte) []byte { return bytes.Replace(b, []byte(`"mac":"`), []byte(`"mac":"0`), 1) })
	if isAdmitted(s.path(m.ID), m.parts(), s.Keys()) {
		t.Error("a record with another MAC is believed")
	}
}

// TestSweep leaves what a killed process would: the tree is as it was, and nothing else is left.
func TestSweep(t *testing.T) {
	s := newStore(t)
	m := take(t, s, "x", "")
	dead, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	draft(t, dead.Dir, 'a')
	dead.lock.Close() // as the kernel does for a killed process
	alive, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	half, err := NewDraft(alive.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path(m.ID)+".gone", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dead process's snapshot: %v", err)
	}
	if _, err := os.Stat(half.State.Name()); err != nil {
		t.Errorf("a living process's draft was swept: %v", err)
	}
	if err := errors.Join(half.Discard(), alive.Discard()); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, pattern := range []string{"*", "staging/*"} {
		found, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	if want := []string{s.path(m.ID), filepath.Join(s.dir, "lock"), filepath.Join(s.dir, stagingDir)}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

func TestDraftOnAnother(t *testing.T) {
	base := draft(t, filepath.Join(t.TempDir(), "base"), 'a')
	d, err := NewDraft(filepath.Join(t.TempDir(), "next"))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := base.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if err := d.Begin(t.Context(), memory, 64*page); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Memory.WriteAt(bytes.Repeat([]byte{'b'}, page), 41*page); err != nil {
		t.Fatal(err)
	}
	if err := d.Whole(64 * page); err != nil {
		t.Fatal(err)
	}
	var got [64 * page]byte
	if n, err := d.Memory.ReadAt(got[:], 0); n != len(got) {
		t.Fatal(n, err)
	}
	if s := string([]byte{got[39*page], got[40*page], got[41*page], got[42*page], got[43*page]}); s != "\x00aba\x00" {
		t.Errorf("pages %q, want one changed among three", s)
	}
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
}

func FuzzManifest(f *testing.F) {
	good, err := json.Marshal(&Manifest{
		Version: 1, ID: "0123456789abcdef", Created: time.Unix(1, 0), Origin: json.RawMessage(`{}`), Spec: Spec{Version: 1},
		Parts: map[string]Part{stateFile: {}, memoryFile: {}, diskFile: {}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1), []byte(`"parts":{`), []byte(`"encryption":{"cipher":"`+cipherName+`","key":"age"},"parts":{"key":{"size":1,"root":""},`), 1))
	f.Add([]byte(`{"version":3}`))
	f.Add([]byte(`{"version":1,"id":"../../../etc"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		if !idPattern.MatchString(m.ID) || m.Parent != "" && !idPattern.MatchString(m.Parent) || len(m.Parts) != len(m.parts()) {
			t.Errorf("taken: %+v", m)
		}
	})
}

// TestExportImport takes a snapshot to another installation, which must trust the first, and refuses what is not whole.
func TestExportImport(t *testing.T) {
	from, to := newStore(t), newStore(t)
	root := take(t, from, "root", "")
	m := take(t, from, "leaf", root.ID)
	var archive bytes.Buffer
	if err := from.Export(t.Context(), m, &archive); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Import(t.Context(), bytes.NewReader(archive.Bytes())); !errors.Is(err, ErrUntrusted) {
		t.Fatalf("import from a stranger: %v, want ErrUntrusted", err)
	}
	public, err := from.Keys().Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Keys().Trust("from", public); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < archive.Len(); n += 97 {
		if _, err := to.Import(t.Context(), bytes.NewReader(archive.Bytes()[:n])); err == nil {
			t.Fatalf("%d of %d bytes were imported", n, archive.Len())
		}
	}
	got, err := to.Import(t.Context(), bytes.NewReader(archive.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != m.ID || got.Parent != root.ID {
		t.Errorf("imported %+v", got)
	}
	if _, err := to.Import(t.Context(), bytes.NewReader(archive.Bytes())); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("imported twice: %v", err)
	}
	d, err := to.Admit(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	f, err := d.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [64 * page]byte
	if n, err := f.ReadAt(b[:], 0); n != len(b) || b[40*page] != 'a' || b[39*page] != 0 {
		t.Errorf("memory of %d bytes, %v", n, err)
	}
	if left, err := filepath.Glob(filepath.Join(to.dir, stagingDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
}

func TestDiff(t *testing.T) {
	s := newStore(t)
	a, same := take(t, s, "a", ""), take(t, s, "same", "")
	p, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	draft(t, p.Dir, 'b')
	b, err := p.Add(t.Context(), Manifest{Name: "b", Origin: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		other *Manifest
		want  Difference
	}{{a, Difference{}}, {same, Difference{}}, {b, Difference{Memory: 3 * page, Disk: 3 * page}}} {
		if got, err := s.Diff(t.Context(), a, test.other); err != nil || got != test.want {
			t.Errorf("a and %s: %+v, %v, want %+v", test.other.Name, got, err, test.want)
		}
	}
}

// TestDiskOfARunningMachine copies a disk that is written to meanwhile: bytes change, come and go.
func TestDiskOfARunningMachine(t *testing.T) {
	const size = 64 * page
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	write := func(letter byte, first, pages int) {
		t.Helper()
		if _, err := disk.WriteAt(bytes.Repeat([]byte{letter}, pages*page), int64(first)*page); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.Truncate(size); err != nil {
		t.Fatal(err)
	}
	write('a', 0, 20)
	d, err := NewDraft(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.PrepareDisk(t.Context(), disk, size); err != nil {
		t.Fatal(err)
	}
	write('b', 5, 2)
	write('c', 40, 1)
	if err := unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 10*page, 4*page); err != nil {
		t.Fatal(err)
	}
	written := []sparse.Extent{{Offset: 5 * page, Length: 2 * page}, {Offset: 10 * page, Length: 4 * page}, {Offset: 32 * page, Length: 32 * page}}
	if err := d.FinishDisk(t.Context(), disk, written); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(disk.Name())
	if err != nil {
		t.Fatal(err)
	}
	write('z', 0, 64) // it runs on
	if err := errors.Join(d.PackDisk(t.Context(), size), d.Whole(page)); err != nil {
		t.Fatal(err)
	}
	done, err := d.Publish(Spec{CPUs: 1, Memory: page, Disk: size})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(done.Dir(), unpackedFile)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	path := filepath.Join(t.TempDir(), "copy")
	if err := done.NewDisk(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want those of the moment it stood still: %v", len(got), err)
	}
}
