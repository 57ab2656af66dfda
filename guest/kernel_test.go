package guest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	setOption   = regexp.MustCompile(`^(CONFIG_[A-Z0-9_]+)=(y|[0-9]+)$`)
	unsetOption = regexp.MustCompile(`^# (CONFIG_[A-Z0-9_]+) is not set$`)
)

func TestFragmentIsWellFormed(t *testing.T) {
	seen := map[string]int{}
	commented := false // in this group, which ends with an empty line
	for i, line := range strings.Split(strings.TrimSuffix(string(kernelConfig), "\n"), "\n") {
		n := i + 1
		name := ""
		switch {
		case line == "":
			commented = false
			continue
		case setOption.MatchString(line):
			name = setOption.FindStringSubmatch(line)[1]
		case unsetOption.MatchString(line):
			name = unsetOption.FindStringSubmatch(line)[1]
		case strings.HasPrefix(line, "# "):
			commented = true
			continue
		default:
			t.Errorf("line %d: %q is neither an option nor a comment", n, line)
			continue
		}
		if !commented {
			t.Errorf("line %d: the group of %s has no comment before it", n, name)
		}
		if first := seen[name]; first != 0 {
			t.Errorf("line %d: %s is already on line %d", n, name, first)
		}
		seen[name] = n
	}
	for _, name := range []string{"CONFIG_MODULES", "CONFIG_PCI"} {
		if seen[name] != 0 {
			t.Errorf("line %d: %s: guests have neither modules nor PCI", seen[name], name)
		}
	}
}

func TestPatchesGiveTheirReason(t *testing.T) {
	err := fs.WalkDir(kernelPatches, "kernel/patches", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := kernelPatches.ReadFile(path)
		reason, _, found := strings.Cut(string(b), "\n--- a/")
		if !found || len(strings.TrimSpace(reason)) < 40 {
			t.Errorf("%s: no reason before the first hunk", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The script and KernelPath must name the same place, or a kernel is built and not found.
func TestKernelPathIsTheScripts(t *testing.T) {
	cache := t.TempDir()
	hash, err := kernelHash()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := KernelPath(filepath.Join(cache, "spore")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make kernel") {
		t.Errorf("without a kernel: %v, want a hint at make kernel", err)
	}
	want := filepath.Join(cache, "spore", "kernel", hash, "vmlinux")
	if err := os.MkdirAll(filepath.Dir(want), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := KernelPath(filepath.Join(cache, "spore")); got != want || err != nil {
		t.Errorf("KernelPath: %q, %v, want %q", got, err, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, args := range [][]string{{"--path"}, nil} { // without an argument, too, it only prints: the kernel is there
		cmd := exec.CommandContext(ctx, "kernel/build.sh", args...)
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache)
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); got != want || err != nil {
			t.Fatalf("build.sh %v: %q, %v, want %q", args, got, err, want)
		}
	}
}

func TestCmdline(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range parameters {
		key, _, _ := strings.Cut(p.text, "=")
		if strings.ContainsAny(p.text, " \"\n") || seen[key] || p.why == "" {
			t.Errorf("parameter %q: has spaces, is there twice, or has no reason", p.text)
		}
		seen[key] = true
		if !strings.Contains(" "+Cmdline()+" ", " "+p.text+" ") {
			t.Errorf("Cmdline lacks %q", p.text)
		}
	}
	if len(Cmdline()) > 1024 {
		t.Errorf("Cmdline has %d bytes: no room for a caller's words below the kernel's 2048", len(Cmdline()))
	}
}
