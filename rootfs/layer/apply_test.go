package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spore/rootfs/erofs"
	"spore/rootfs/erofs/erofstest"
	"spore/rootfs/layer"
)

// entries of test layers.
func regular(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: content}
}
func directory(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}
func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}
func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}
func whiteout(name string) tar.Header { return regular(name, "") }

// archive writes headers as a tar file; a regular file's Linkname is its content.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func imageFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// flatten applies layers and reads the image back.
func flatten(t testing.TB, limits layer.Limits, layers ...[]byte) (map[string]erofstest.Entry, error) {
	t.Helper()
	f := imageFile(t)
	w := erofs.NewWriter(f)
	tree := layer.NewTree(w, limits, nil)
	for _, l := range layers {
		if err := tree.Apply(context.Background(), bytes.NewReader(l)); err != nil {
			return nil, err
		}
	}
	if _, err := w.Finish(tree.Root(), erofs.BlockSize); err != nil {
		t.Fatal(err)
	}
	return erofstest.MustRead(t, f), nil
}

func TestLayers(t *testing.T) {
	type layers [][]tar.Header
	for _, c := range []struct {
		name   string
		layers layers
		want   []string
	}{
		{"implied directories", layers{{regular("a/b/c", "x")}},
			[]string{"drwxr-xr-x a", "drwxr-xr-x a/b", "-rw-r--r-- a/b/c = x"}},
		{"leading slash and dots", layers{{regular("/a", "1"), regular("./b", "2"), regular("././/c//d", "3")}},
			[]string{"-rw-r--r-- a = 1", "-rw-r--r-- b = 2", "drwxr-xr-x c", "-rw-r--r-- c/d = 3"}},
		{"upper layer wins", layers{{regular("a", "old")}, {regular("a", "new")}},
			[]string{"-rw-r--r-- a = new"}},
		{"later entry wins", layers{{regular("a", "old"), regular("a", "new")}},
			[]string{"-rw-r--r-- a = new"}},
		{"whiteout", layers{{regular("d/a", ""), regular("d/b", "b")}, {whiteout("d/.wh.a")}},
			[]string{"drwxr-xr-x d", "-rw-r--r-- d/b = b"}},
		{"whiteout of a directory", layers{{regular("d/a", ""), regular("d/e/f", "")}, {whiteout(".wh.d")}}, nil},
		{"whiteout before its replacement", layers{{regular("d/a", "")}, {whiteout(".wh.d"), directory("d"), regular("d/b", "b")}},
			[]string{"drwxr-xr-x d", "-rw-r--r-- d/b = b"}},
		{"whiteout after its replacement", layers{{regular("d/a", "")}, {directory("d"), regular("d/b", "b"), whiteout(".wh.d")}},
			[]string{"drwxr-xr-x d", "-rw-r--r-- d/b = b"}},
		{"whiteout spares its own layer", layers{{}, {regular("a", "1"), whiteout(".wh.a")}},
			[]string{"-rw-r--r-- a = 1"}},
		{"whiteout of nothing", layers{{whiteout(".wh.a"), whiteout("no/such/.wh.b")}}, nil},
		{"opaque", layers{{regular("d/a", ""), regular("d/e/f", "")}, {regular("d/b", "b"), whiteout("d/.wh..wh..opq")}},
			[]string{"drwxr-xr-x d", "-rw-r--r-- d/b = b"}},
		{"opaque keeps what is deep and new", layers{{regular("d/e/old", "")}, {regular("d/e/new", "n"), whiteout("d/.wh..wh..opq")}},
			[]string{"drwxr-xr-x d", "drwxr-xr-x d/e", "-rw-r--r-- d/e/new = n"}},
		{"opaque root", layers{{regular("a", "")}, {whiteout(".wh..wh..opq"), regular("b", "b")}},
			[]string{"-rw-r--r-- b = b"}},
		{"aufs files are not files", layers{{whiteout(".wh..wh.plnk"), whiteout(".wh..wh.aufs"), whiteout(".wh.")}}, nil},
		{"directory keeps its children", layers{{regular("d/a", "a")}, {tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o700}}},
			[]string{"drwx------ d", "-rw-r--r-- d/a = a"}},
		{"file over directory", layers{{regular("d/a", "a")}, {regular("d", "f")}},
			[]string{"-rw-r--r-- d = f"}},
		{"directory over file", layers{{regular("d", "f")}, {directory("d")}, {regular("d/a", "a")}},
			[]string{"drwxr-xr-x d", "-rw-r--r-- d/a = a"}},
		{"hard link", layers{{regular("a", "1"), hardlink("b", "/a")}},
			[]string{"-rw-r--r-- a = 1", "-rw-r--r-- b = 1"}},
		{"hard link to itself", layers{{regular("a", "1"), hardlink("a", "a")}}, []string{"-rw-r--r-- a = 1"}},
		{"hard link to a link", layers{{symlink("a", "x"), hardlink("b", "a")}},
			[]string{"Lrwxrwxrwx a -> x", "Lrwxrwxrwx b -> x"}},
		{"hard link outlives what it was made from", layers{{regular("a", "1")}, {hardlink("b", "a"), whiteout(".wh.a")}},
			[]string{"-rw-r--r-- b = 1"}},
		{"parent is a link", layers{{directory("usr/lib"), symlink("lib", "usr/lib")}, {regular("lib/x", "x")}},
			[]string{"Lrwxrwxrwx lib -> usr/lib", "drwxr-xr-x usr", "drwxr-xr-x usr/lib", "-rw-r--r-- usr/lib/x = x"}},
		{"fifo", layers{{tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}}}, []string{"prw------- p"}},
		{"root itself", layers{{directory("./"), regular("./a", "")}}, []string{"-rw-r--r-- a = "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var raw [][]byte
			for _, l := range c.layers {
				raw = append(raw, archive(t, l...))
			}
			got, err := flatten(t, layer.Limits{}, raw...)
			if err != nil {
				t.Fatal(err)
			}
			if lines := erofstest.Lines(got); !slices.Equal(lines, c.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	h := regular("f", "x")
	h.Mode, h.Uid, h.Gid, h.ModTime, h.Format = 0o6755, 100000, 65534, time.Unix(1e9, 123456789), tar.FormatPAX
	h.PAXRecords = map[string]string{
		"SCHILY.xattr.user.kept": "v", "SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "label", "comment": "no attribute",
	}
	got, err := flatten(t, layer.Limits{}, archive(t, h))
	if err != nil {
		t.Fatal(err)
	}
	e := got["f"]
	if e.Mode != os.ModeSetuid|os.ModeSetgid|0o755 || e.UID != 100000 || e.GID != 65534 || e.Mtime != 1e9 || e.Nsec != 123456789 {
		t.Errorf("%v, owner %d:%d, time %d.%09d", e.Mode, e.UID, e.GID, e.Mtime, e.Nsec)
	}
	if len(e.Xattrs) != 2 || e.Xattrs["user.kept"] != "v" || e.Xattrs["security.capability"] != "cap" {
		t.Errorf("attributes: %q", e.Xattrs)
	}
}

func TestSparseFile(t *testing.T) {
	f, err := os.Open("testdata/sparse.tar") // GNU tar, 1 MiB hole, "end"
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img := imageFile(t)
	w := erofs.NewWriter(img)
	tree := layer.NewTree(w, layer.Limits{}, nil)
	if err := tree.Apply(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(tree.Root(), erofs.BlockSize); err != nil {
		t.Fatal(err)
	}
	got := erofstest.MustRead(t, img)["sparse"]
	if want := strings.Repeat("\x00", 1<<20) + "end"; got.Content != want {
		t.Errorf("%d bytes, want %d", len(got.Content), len(want))
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tree := layer.NewTree(erofs.NewWriter(imageFile(t)), layer.Limits{}, nil)
	if err := tree.Apply(ctx, bytes.NewReader(archive(t, regular("a", "x")))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context canceled", err)
	}
}

func TestFind(t *testing.T) {
	tree := layer.NewTree(erofs.NewWriter(imageFile(t)), layer.Limits{}, nil)
	data := archive(t, regular("real/passwd", "found"), symlink("etc", "/real"), symlink("real/up", "../../../etc/passwd"),
		symlink("a", "b"), symlink("b", "a"), directory("dir"))
	if err := tree.Apply(context.Background(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"/etc/passwd": "found", "real/passwd": "found", "/etc/up": "found", "/../../etc/passwd": "found",
		"/etc/shadow": "", "/a": "", "/a/x": "", "/real/passwd/x": "", "/missing/x": "",
	} {
		n := tree.Find(name)
		switch {
		case n == nil && want != "":
			t.Errorf("%s: not found", name)
		case n != nil && string(n.Inline) != want:
			t.Errorf("%s: found %q, want %q", name, n.Inline, want)
		}
	}
}

// ExampleTree_Apply flattens two layers.
func ExampleTree_Apply() {
	f, err := os.CreateTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	tree := layer.NewTree(erofs.NewWriter(f), layer.Limits{}, nil)
	for _, name := range []string{"etc/old", "etc/.wh.old"} {
		var l bytes.Buffer
		w := tar.NewWriter(&l)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}); err != nil {
			panic(err)
		}
		w.Close()
		if err := tree.Apply(context.Background(), &l); err != nil {
			panic(err)
		}
	}
	fmt.Println(tree.Find("/etc") != nil, tree.Find("/etc/old") != nil)
	// Output: true false
}
