package guest

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed kernel/spore.config
var kernelConfig []byte

//go:embed kernel/build.sh
var kernelBuild []byte

//go:embed kernel/patches/*.patch
var kernelPatches embed.FS

// KernelPath is where guest/kernel/build.sh has put the vmlinux of this very configuration, below cacheDir
// ($XDG_CACHE_HOME/spore). It is an error that wraps fs.ErrNotExist when it has not been built.
func KernelPath(cacheDir string) (string, error) {
	hash, err := kernelHash()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cacheDir, "kernel", hash, "vmlinux")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no guest kernel: run 'make kernel', or name one with --kernel: %w", err)
	}
	return path, nil
}

// kernelHash names a kernel by what it is made of, as build.sh does. The compiler has no part in it: it may be absent
// where a kernel is only used.
func kernelHash() (string, error) {
	h := sha256.New()
	h.Write(kernelConfig)
	h.Write(kernelBuild)
	if err := hashPatches(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// hashPatches adds the patches in the order in which they are applied.
func hashPatches(h io.Writer) error {
	return fs.WalkDir(kernelPatches, "kernel/patches", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := kernelPatches.ReadFile(path)
		if err == nil {
			_, err = h.Write(b)
		}
		return err
	})
}
