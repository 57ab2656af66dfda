package rootfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"spore/rootfs"
	"spore/rootfs/erofs/erofstest"
)

func openStore(t testing.TB, c rootfs.Config) *rootfs.Store {
	t.Helper()
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "store")
	}
	s, err := rootfs.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// file of a test archive.
type file struct{ name, content string }

const accounts = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n" +
	"app:x:1000:1001:,,,:/home/app:/bin/sh\nbroken line\nbad:x:y:z:::\n7:x:77:77::relative:/bin/sh\n"

const groups = "root:x:0:\nstaff:x:50:app,root\nvideo:x:44:app\napp:x:1001:app\n"

var plain = []file{{"bin/sh", strings.Repeat("#", 5000)}, {"etc/passwd", accounts}, {"etc/group", groups}}

func tarBytes(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o755, Size: int64(len(f.content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// importPlain imports the plain root file system under a name.
func importPlain(t testing.TB, s *rootfs.Store, name string) rootfs.Image {
	t.Helper()
	img, err := s.Import(t.Context(), "tar:"+write(t, "root.tar", tarBytes(t, plain...)), name, rootfs.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// contents reads an image's files back.
func contents(t testing.TB, img rootfs.Image) map[string]erofstest.Entry {
	t.Helper()
	f, err := img.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != img.Size || img.Size%rootfs.Alignment != 0 || info.Mode().Perm() != 0o444 {
		t.Fatalf("%s: %v, %v; want %d bytes, read-only", img.Path, info, err, img.Size)
	}
	return erofstest.MustRead(t, f)
}

// storeFiles lists the files of a store that belong to images.
func storeFiles(t testing.TB, s *rootfs.Store) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(s.Dir(), path)
		if rel != "lock" && rel != "names.json" {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// recorder is a Progress that keeps what it is told.
type recorder struct {
	mu       sync.Mutex
	steps    []rootfs.Step
	warnings []string
}

func (r *recorder) Update(s rootfs.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, s)
}

func (r *recorder) Warn(m string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, m)
}

// finished counts the finished steps of a phase.
func (r *recorder) finished(p rootfs.Phase) (n int) {
	for _, s := range r.steps {
		if s.Phase == p && s.Finished {
			n++
		}
	}
	return n
}
