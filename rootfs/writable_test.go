package rootfs_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/rootfs"
)

var ext4Tools = testenv.Need{Name: "e2fsprogs", Probe: func() error {
	for _, tool := range []string{"/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck"} {
		if _, err := os.Stat(tool); err != nil {
			return err
		}
	}
	return nil
}}

func TestNewWritable(t *testing.T) {
	testenv.Require(t, ext4Tools)
	s := openStore(t, rootfs.Config{})
	dir := t.TempDir()
	for i, size := range []int64{rootfs.MinWritable, rootfs.MinWritable + 1, 100_000_000, 1 << 30, 64 << 30} {
		for _, which := range []string{"made", "copied"} {
			path := filepath.Join(dir, which+string(rune('0'+i)))
			if err := s.NewWritable(t.Context(), path, size); err != nil {
				t.Fatalf("%d bytes, %s: %v", size, which, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			if st.Size != (size+4095)/4096*4096 || st.Blocks*512 > 4<<20 || st.Mode&0o777 != 0o600 {
				t.Errorf("%d bytes, %s: size %d, %d on disk, mode %o", size, which, st.Size, st.Blocks*512, st.Mode)
			}
			if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
				t.Errorf("%d bytes, %s: %v\n%s", size, which, err, out)
			}
		}
	}
	existing := filepath.Join(dir, "made0")
	if err := s.NewWritable(t.Context(), existing, 1<<30); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), link); err != nil {
		t.Fatal(err)
	}
	if err := s.NewWritable(t.Context(), link, 1<<30); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a symbolic link: %v", err)
	}
	for _, size := range []int64{-1, 0, rootfs.MinWritable - 1, rootfs.MaxWritable + 1} {
		if err := s.NewWritable(t.Context(), filepath.Join(dir, "bad"), size); err == nil {
			t.Errorf("%d bytes were accepted", size)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.NewWritable(cancelled, filepath.Join(dir, "bad"), 1<<30); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "bad")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failure left its file: %v", err)
	}
}

func TestNewWritableTogether(t *testing.T) {
	testenv.Require(t, ext4Tools)
	dir := filepath.Join(t.TempDir(), "store")
	out := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		s := openStore(t, rootfs.Config{Dir: dir})
		wg.Go(func() {
			if err := s.NewWritable(t.Context(), filepath.Join(out, string(rune('a'+i))), 32<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if templates, _ := os.ReadDir(filepath.Join(dir, "writable")); len(templates) != 1 {
		t.Errorf("%d templates of one size", len(templates))
	}
}

func BenchmarkNewWritable(b *testing.B) {
	testenv.Require(b, ext4Tools)
	s := openStore(b, rootfs.Config{})
	path := filepath.Join(b.TempDir(), "disk")
	for b.Loop() {
		if err := s.NewWritable(b.Context(), path, 10<<30); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
