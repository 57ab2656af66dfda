package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/rootfs/erofs"
	"spore/rootfs/erofs/erofstest"
	"spore/rootfs/layer"
)

func flattenDir(t *testing.T, path string, limits layer.Limits) (map[string]erofstest.Entry, []string, error) {
	t.Helper()
	root, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f := imageFile(t)
	w := erofs.NewWriter(f)
	var warnings []string
	tree := layer.NewTree(w, limits, func(m string) { warnings = append(warnings, m) })
	if err := tree.ApplyDir(context.Background(), root); err != nil {
		return nil, warnings, err
	}
	if _, err := w.Finish(tree.Root(), erofs.BlockSize); err != nil {
		t.Fatal(err)
	}
	return erofstest.MustRead(t, f), warnings, nil
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	must(os.WriteFile(secret, []byte("secret"), 0o600),
		os.MkdirAll(in("a/b"), 0o755),
		os.WriteFile(in("a/b/file"), []byte("content"), 0o640),
		os.WriteFile(in("big"), []byte(strings.Repeat("big", 10_000)), 0o600),
		os.Link(in("big"), in("a/hard")),
		os.Symlink(secret, in("out")),
		os.Symlink("a/b", in("in")),
		os.WriteFile(in(".wh.kept"), []byte("no whiteout"), 0o644),
		os.Chmod(in("a/b/file"), os.ModeSetuid|0o755),
		unix.Mkfifo(in("fifo"), 0o600))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(err, unix.Bind(socket, &unix.SockaddrUnix{Name: in("sock")}), unix.Close(socket))

	got, warnings, err := flattenDir(t, dir, layer.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-rw-r--r-- .wh.kept = no whiteout", "drwxr-xr-x a", "drwxr-xr-x a/b", "urwxr-xr-x a/b/file = content",
		"-rw------- a/hard", "-rw------- big", "prw------- fifo", "Lrwxrwxrwx in -> a/b", "Lrwxrwxrwx out -> " + secret,
	}
	if lines := erofstest.Lines(got); !slices.Equal(lines, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if got["big"].Ino != got["a/hard"].Ino || got["big"].Content != strings.Repeat("big", 10_000) {
		t.Error("hard link or its content is wrong")
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "sock") {
		t.Errorf("warnings %q, want one about the socket", warnings)
	}
	for path, e := range got {
		if e.Content == "secret" {
			t.Errorf("%s holds a file from outside", path)
		}
	}
}

func TestDirectoryLimits(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "sparse"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, _, err := flattenDir(t, dir, layer.Limits{Size: 1 << 19}); !limited(err, "size") {
		t.Errorf("%v, want the limit for size", err)
	}
	if _, _, err := flattenDir(t, dir, layer.Limits{}); err != nil {
		t.Error(err)
	}
}
