package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// entry is one entry of a tar stream that Pack would not make.
type entry struct {
	tar.Header
	content string
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
}

func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, ""}
}

func other(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Devmajor: 1, Devminor: 3}, ""}
}

func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// AG-04: whatever tar stream the guest sends, nothing appears outside the tree that is copied.
func TestAG04CopyOut(t *testing.T) {
	sparse := entry{tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, Format: tar.FormatPAX}, ""}
	for name, entries := range map[string][]entry{
		"dots":                       {file("../outside", "owned")},
		"dots below":                 {dir("x"), file("x/../../outside", "owned")},
		"absolute":                   {file("/tmp/spore-outside", "owned")},
		"dot":                        {dir(".")},
		"empty name":                 {file("", "x")},
		"neighbour":                  {dir("x"), file("secret/key", "owned")},
		"neighbour first":            {file("secret/key", "owned")},
		"second file":                {file("x", "1"), file("y", "2")},
		"below a file":               {file("x", "1"), file("x/y", "2")},
		"twice":                      {dir("x"), dir("x")},
		"link out":                   {dir("x"), link("x/l", "../secret")},
		"link to the parent":         {dir("x"), link("x/l", "..")},
		"absolute link":              {dir("x"), link("x/l", "/etc")},
		"empty link":                 {dir("x"), link("x/l", "./../../secret")},
		"top link":                   {link("x", "secret")},
		"link, then file":            {dir("x"), link("x/l", "../secret"), file("x/l/key", "owned")},
		"local link, then file":      {dir("x"), dir("x/d"), link("x/l", "d"), file("x/l/f", "through a link")},
		"links that add up":          {dir("x"), dir("x/d"), dir("x/d/e"), link("x/d/e/s", "../.."), link("x/t", "d/e/s/../secret")},
		"link in place of directory": {dir("x"), dir("x/d"), link("x/d", ".")},
		"directory in place of link": {dir("x"), link("x/l", "."), dir("x/l")},
		"hard link":                  {dir("x"), other(tar.TypeLink, "x/h", "secret/key")},
		"hard link to absolute":      {other(tar.TypeLink, "x", "/etc/passwd")},
		"character device":           {other(tar.TypeChar, "x", "")},
		"block device":               {dir("x"), other(tar.TypeBlock, "x/b", "")},
		"FIFO":                       {other(tar.TypeFifo, "x", "")},
		"before its directory":       {dir("x"), file("x/d/f", "1")},
		"long name":                  {file(strings.Repeat("n/", 4096)+"x", "1")},
	} {
		t.Run(name, func(t *testing.T) { refused(t, tarball(t, entries...)) })
	}
	huge := sparse
	huge.Size = maxTarBytes + 1
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&huge.Header); err != nil {
		t.Fatal(err)
	}
	t.Run("huge", func(t *testing.T) { refused(t, b.Bytes()) })
	t.Run("nothing", func(t *testing.T) { refused(t, tarball(t)) })
	t.Run("sparse bomb", func(t *testing.T) { refused(t, sparseBomb()) })
}

// refused unpacks a stream next to a secret and wants an error and an untouched secret.
func refused(t *testing.T, b []byte) {
	t.Helper()
	base := t.TempDir()
	dest := filepath.Join(base, "dest")
	secret := filepath.Join(dest, "secret", "key")
	if err := os.MkdirAll(filepath.Dir(secret), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(bytes.NewReader(b), dest, Rules{}); err == nil {
		t.Error("taken")
	} else if !errors.Is(err, ErrArchive) && !errors.Is(err, os.ErrExist) && !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("refused for another reason: %v", err)
	}
	if got, err := os.ReadFile(secret); string(got) != "secret" || err != nil {
		t.Errorf("the neighbour is %q now, %v", got, err)
	}
	for _, p := range []string{filepath.Join(base, "outside"), "/tmp/spore-outside"} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s was made", p)
		}
	}
}

// sparseBomb is a PAX 1.0 sparse file that claims a terabyte. The standard library reads it and does not write it.
func sparseBomb() []byte {
	records := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n21 GNU.sparse.name=x\n" + "37 GNU.sparse.realsize=1099511627776\n"
	var b bytes.Buffer
	block := func(name string, kind byte, content string) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], []byte("00000000000\x0000000000000\x00        "))
		copy(h[124:], octal(len(content)))
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], octal(sum)[5:])
		h[154], h[155] = 0, ' '
		b.Write(h)
		b.WriteString(content)
		b.Write(make([]byte, (512-len(content)%512)%512))
	}
	block("PaxHeaders/x", 'x', records)
	block("x", '0', "1\n1099511627775\n1\n"+strings.Repeat("\x00", 512-18)+"!")
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

func octal(n int) string {
	s := []byte("00000000000")
	for i := len(s) - 1; n > 0; i, n = i-1, n/8 {
		s[i] = byte('0' + n%8)
	}
	return string(s)
}

// AG-04: directories without end are cut off before their names fill memory.
func TestAG04ManyEntries(t *testing.T) {
	var u unpacker
	d := dir("x/" + strings.Repeat("n", maxEntryName-64))
	for i := range maxEntries {
		if err := u.directory(d.Name, &d.Header); err != nil {
			if !errors.Is(err, ErrArchive) || i > maxDirNames/len(d.Name) {
				t.Errorf("%v after %d directories", err, i)
			}
			return
		}
	}
	t.Error("there is no end")
}

func TestCopiesComeOutAlike(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(src, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "a/b/run"), bytes.Repeat([]byte("0123456789"), 50_000), 0o751))
	must(t, os.WriteFile(filepath.Join(src, "empty"), nil, 0o600))
	must(t, os.Symlink("a/b/run", filepath.Join(src, "link")))
	must(t, os.Symlink("../../empty", filepath.Join(src, "a/b/up")))
	must(t, os.Chmod(filepath.Join(src, "a/b"), 0o500))
	then := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(filepath.Join(src, "a/b"), then, then))
	t.Cleanup(func() { os.Chmod(filepath.Join(src, "a/b"), 0o700) })
	var b bytes.Buffer
	must(t, Pack(&b, src))
	for name, dest := range map[string]string{"into": "here", "into/": "here/", "as": "new"} {
		base := t.TempDir()
		must(t, os.Mkdir(filepath.Join(base, "here"), 0o755))
		must(t, Unpack(bytes.NewReader(b.Bytes()), base+"/"+dest, Rules{}))
		top := filepath.Join(base, "here/tree")
		if dest == "new" {
			top = filepath.Join(base, "new")
		}
		t.Cleanup(func() { os.Chmod(filepath.Join(top, "a/b"), 0o700) })
		for _, p := range []string{"a", "a/b", "a/b/run", "empty", "link", "a/b/up"} {
			want, _ := os.Lstat(filepath.Join(src, p))
			got, err := os.Lstat(filepath.Join(top, p))
			if err != nil || got.Mode() != want.Mode() {
				t.Errorf("%s: %s: %v, want %v (%v)", name, p, got, want.Mode(), err)
			}
		}
		want, _ := os.ReadFile(filepath.Join(src, "link"))
		if got, err := os.ReadFile(filepath.Join(top, "link")); !bytes.Equal(got, want) {
			t.Errorf("%s: content differs, %v", name, err)
		}
		if st, err := os.Stat(filepath.Join(top, "a/b")); err != nil || !st.ModTime().Equal(then) {
			t.Errorf("%s: the directory's time is not kept: %v", name, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnpackDestinations(t *testing.T) {
	base := t.TempDir()
	one := tarball(t, file("f", "new"))
	if err := Unpack(bytes.NewReader(one), base+"/none/", Rules{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := Unpack(bytes.NewReader(one), base+"/none/f", Rules{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// A link at the destination is replaced; what it leads to stays.
	must(t, os.WriteFile(base+"/precious", []byte("old"), 0o600))
	must(t, os.Symlink("precious", base+"/f"))
	must(t, Unpack(bytes.NewReader(one), base, Rules{}))
	if got, _ := os.ReadFile(base + "/precious"); string(got) != "old" {
		t.Errorf("written through a link: %q", got)
	}
	// For a guest, links lead where they like.
	must(t, Unpack(bytes.NewReader(tarball(t, dir("x"), link("x/l", "/etc/passwd"))), base, Rules{Links: true}))
	must(t, Unpack(bytes.NewReader(tarball(t, link("l", "../x"))), base, Rules{Links: true, Owner: &Owner{os.Getuid(), os.Getgid()}}))
}

func TestPackLeavesOutWhatIsNoFile(t *testing.T) {
	base := t.TempDir()
	l, err := net.Listen("unix", base+"/socket")
	must(t, err)
	defer l.Close()
	must(t, os.WriteFile(base+"/f", []byte("x"), 0o600))
	var b bytes.Buffer
	must(t, Pack(&b, base))
	dest := t.TempDir()
	must(t, Unpack(&b, dest+"/new", Rules{}))
	entries, err := os.ReadDir(dest + "/new")
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := Pack(io.Discard, base+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	t.Chdir(base)
	if err := Pack(io.Discard, "."); err != nil {
		t.Error(err)
	}
}

// Put stops sending when it is refused, however much there is to send.
func TestPutIsRefusedEarly(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big")
	f, err := os.Create(big)
	must(t, err)
	must(t, f.Truncate(1<<30))
	f.Close()
	dial := scripted(func(c net.Conn) {
		r := NewReader(c)
		_ = r.Expect(FrameRequest, nil)
		c.Write(text(FrameFailure, `{"error":"no room"}`)) // and reads no more
	})
	err = Put(t.Context(), dial, big, "/x", Owner{})
	var refusal *Failure
	if !errors.As(err, &refusal) || refusal.Text != "no room" {
		t.Error(err)
	}
}

func TestGetReportsTheGuestsFailure(t *testing.T) {
	cut := tarball(t, file("f", strings.Repeat("x", 1024)))[:1024]
	for name, answer := range map[string][]byte{
		"at once": text(FrameFailure, `{"error":"no such file"}`),
		"midway":  append(text(FrameData, string(cut)), text(FrameFailure, `{"error":"no such file"}`)...),
		"at the end": append(text(FrameData, string(tarball(t, file("f", "x")))),
			text(FrameFailure, `{"error":"no such file"}`)...),
	} {
		err := Get(context.Background(), impostor(answer), "/f", t.TempDir())
		var f *Failure
		if !errors.As(err, &f) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarball(f, dir("x"), file("x/f", "content"), link("x/l", "f")))
	f.Add(tarball(f, dir("x"), link("x/l", "../secret"), file("x/l/key", "owned")))
	f.Add(tarball(f, file("../outside", "owned")))
	f.Add(sparseBomb())
	base := f.TempDir()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		if shm, err := os.MkdirTemp("/dev/shm", "spore-unpack-"); err == nil {
			base = shm
			f.Cleanup(func() { os.RemoveAll(shm) })
		}
	}
	must(f, os.WriteFile(base+"/secret", []byte("secret"), 0o600))
	f.Fuzz(func(t *testing.T, b []byte) {
		dest, err := os.MkdirTemp(base, "d")
		must(t, err)
		defer os.RemoveAll(dest)
		_ = Unpack(bytes.NewReader(b), dest+"/new", Rules{})
		in, err := os.ReadDir(dest)
		if err != nil || len(in) > 1 || len(in) == 1 && in[0].Name() != "new" {
			t.Errorf("beside the tree: %v, %v", in, err)
		}
		if got, err := os.ReadFile(base + "/secret"); string(got) != "secret" {
			t.Errorf("the neighbour is %q now, %v", got, err)
		}
	})
}
