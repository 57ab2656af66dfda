package sandbox

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

func TestHugePages(t *testing.T) {
	testenv.Require(t, testenv.Root)
	for _, tc := range []struct {
		option string
		want   bool
	}{{"huge=never", false}, {"huge=within_size", true}, {"huge=always", true}} {
		t.Run(tc.option, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("spore", dir, "tmpfs", 0, "mode=0700,"+tc.option); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			err := OpenTemplates(filepath.Join(dir, "not", "there")).HugePages()
			if (err == nil) != tc.want {
				t.Errorf("HugePages says %v", err)
			}
		})
	}
}
