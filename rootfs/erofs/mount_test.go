package erofs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/rootfs/erofs"
	"spore/rootfs/erofs/erofstest"
)

// erofsMount is a kernel with EROFS and loop devices.
var erofsMount = testenv.Need{Name: "erofs", Probe: func() error {
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(list), "\terofs\n") {
		return errors.New("the kernel lists no erofs in /proc/filesystems")
	}
	_, err = os.Stat("/dev/loop-control")
	return err
}}

func testenvFsck(t *testing.T) {
	testenv.Require(t, testenv.Need{Name: "fsck.erofs", Probe: func() error {
		_, err := exec.LookPath("fsck.erofs")
		return err
	}})
}

// TestKernelMount compares what the kernel shows with what the independent reader does.
func TestKernelMount(t *testing.T) {
	testenv.Require(t, testenv.Root, erofsMount)
	f := newFile(t)
	w := erofs.NewWriter(f)
	finish(t, w, sample(t, w))
	want := erofstest.MustRead(t, f)

	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", f.Name(), at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}()
	seen := 0
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(at, path)
		e, ok := want[rel]
		if !ok {
			return fmt.Errorf("%q is not in the image", rel)
		}
		seen++
		return compare(path, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(want) {
		t.Errorf("the kernel shows %d names, the reader %d", seen, len(want))
	}
}

func compare(path string, e erofstest.Entry) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode() != e.Mode || st.Uid != e.UID || st.Gid != e.GID || st.Size != e.Size || int(st.Nlink) != e.Nlink ||
		st.Mtim.Sec != e.Mtime || st.Mtim.Nsec != e.Nsec || st.Ino == 0 {
		return fmt.Errorf("%q: kernel %+v, reader %v", path, st, e.Mode)
	}
	switch e.Mode.Type() {
	case fs.ModeSymlink:
		if target, err := os.Readlink(path); err != nil || target != e.Target {
			return fmt.Errorf("%q: link to %q (%v), want %q", path, target, err, e.Target)
		}
	case 0:
		if content, err := os.ReadFile(path); err != nil || string(content) != e.Content {
			return fmt.Errorf("%q: %d bytes (%v), want %d", path, len(content), err, len(e.Content))
		}
	}
	for name, value := range e.Xattrs {
		got := make([]byte, len(value)+1)
		if n, err := unix.Lgetxattr(path, name, got); err != nil || string(got[:n]) != value {
			return fmt.Errorf("%q: attribute %s is %q (%v), want %q", path, name, got[:max(n, 0)], err, value)
		}
	}
	return nil
}
