package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSeedUpper(t *testing.T) {
	live, upper := t.TempDir(), t.TempDir()
	for _, dir := range []string{"etc", "usr/bin", "sbin"} { // sbin is a directory: not a merged /usr
		if err := os.MkdirAll(filepath.Join(live, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(live, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(live, "etc/passwd"), []byte("root:x:0:0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := seedUpper(live, upper); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(upper, "bin")); target != "usr/bin" {
		t.Errorf("bin: %q, %v", target, err)
	}
	if b, err := os.ReadFile(filepath.Join(upper, "etc/passwd")); string(b) != "root:x:0:0" {
		t.Errorf("passwd: %q, %v", b, err)
	}
	for _, name := range []string{"sbin", "lib", "etc/group"} {
		if _, err := os.Lstat(filepath.Join(upper, name)); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", name, err)
		}
	}
}

func TestReseedBounds(t *testing.T) {
	for _, n := range []int{0, 31, 513} {
		if err := reseed(make([]byte, n)); err == nil {
			t.Errorf("a seed of %d bytes was accepted", n)
		}
	}
}
