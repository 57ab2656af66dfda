package guest

import (
	"crypto/sha256"
	_ "embed" // what the kernel is made of
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed kernel/spore.config
var kernelConfig []byte

//go:embed kernel/build.sh
var kernelBuild []byte

// KernelPath is where guest/kernel/build.sh has put the vmlinux of this very configuration, below cacheDir
// ($XDG_CACHE_HOME/spore). It is an error when it has not been built.
func KernelPath(cacheDir string) (string, error) {
	h := sha256.New()
	h.Write(kernelConfig)
	h.Write(kernelBuild)
	path := filepath.Join(cacheDir, "kernel", hex.EncodeToString(h.Sum(nil))[:16], "vmlinux")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no guest kernel at %s: run 'make kernel', or name one with --kernel", path)
	}
	return path, nil
}
