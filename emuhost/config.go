// Package emuhost is the emulated host: a QEMU machine that emulates a
// processor with AMD-V, for machines whose own KVM cannot run guests. It
// offers a real /dev/kvm, cgroup v2 and the outer machine's file system
// (read-only, with a writable layer in memory), and runs commands with their
// streams, signals and exit codes passed through.
//
// The machine outlives the process that started it. Starting it resumes a
// snapshot taken after its first boot, so that it takes a fraction of a second.
package emuhost

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

const (
	// Ports is how many commands can run at the same time.
	Ports = 16

	maxMemory     = 8 << 30
	minMemory     = 1 << 30
	memoryQuantum = 256 << 20
)

// Config says where the emulated host lives and how big it is. The zero value
// is usable once InitBinary is set.
type Config struct {
	// CacheDir holds what can be made again: kernel, initramfs, snapshots.
	// Empty: $XDG_CACHE_HOME/spore/emuhost.
	CacheDir string
	// StateDir holds the running machine's sockets, its logs and the shared
	// directory. One machine runs per state directory. Empty:
	// $XDG_STATE_HOME/spore/emuhost.
	StateDir string
	// InitBinary is spore-hostinit. Empty: beside the running executable.
	InitBinary string
	// Suite of Debian's archive that its kernel is from, such as bookworm-backports for a newer one. Empty: as apt is configured here.
	Suite string
	// Memory is the machine's memory in bytes, used as it is touched. 0: half
	// of the outer machine's, at most 8 GiB.
	Memory int64
	// CPUs is the number of virtual CPUs. 0: as many as the outer machine has.
	CPUs int
	// Log is for developers; nil discards.
	Log *slog.Logger
	// Progress is told each step that takes noticeable time; nil ignores it.
	Progress func(step string)
}

// Host is the emulated host of a state directory, running or not. Its methods
// may be called at the same time, from several processes too.
type Host struct {
	cfg Config
}

// suiteName is what a suite of the archive may be called.
var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// Open completes cfg with defaults and creates its directories. It starts nothing.
func Open(cfg Config) (*Host, error) {
	if cfg.Suite != "" && !suiteName.MatchString(cfg.Suite) {
		return nil, fmt.Errorf("emulated host: %.64q is no suite of Debian's archive: use one like bookworm-backports", cfg.Suite)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	var err error
	if cfg.CacheDir, err = directory(cfg.CacheDir, "XDG_CACHE_HOME", ".cache"); err != nil {
		return nil, err
	}
	if cfg.StateDir, err = directory(cfg.StateDir, "XDG_STATE_HOME", ".local/state"); err != nil {
		return nil, err
	}
	if cfg.InitBinary == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find spore-hostinit: %w", err)
		}
		cfg.InitBinary = filepath.Join(filepath.Dir(exe), "spore-hostinit")
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = min(runtime.NumCPU(), 16)
	}
	if cfg.Memory == 0 {
		if cfg.Memory, err = defaultMemory(); err != nil {
			return nil, err
		}
	}
	if cfg.Memory < minMemory || cfg.CPUs < 1 || cfg.CPUs > 64 {
		return nil, fmt.Errorf("emulated host of %d bytes and %d CPUs: at least 1 GiB and 1 to 64 CPUs are needed", cfg.Memory, cfg.CPUs)
	}
	h := &Host{cfg: cfg}
	for _, dir := range []string{cfg.CacheDir, cfg.StateDir, h.runDir(), h.SharedDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create directory: %w", err)
		}
	}
	return h, nil
}

// directory returns dir, or the default below the XDG variable's directory.
func directory(dir, variable, fallback string) (string, error) {
	if dir == "" {
		base := os.Getenv(variable)
		if !filepath.IsAbs(base) {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find %s: %w", variable, err)
			}
			base = filepath.Join(home, fallback)
		}
		dir = filepath.Join(base, "spore", "emuhost")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// The shared directory is mounted at the same path inside: no links in it.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return dir, nil
}

// defaultMemory is half the machine's memory, at most maxMemory. It is taken
// from the total, not from what is free, so that snapshots stay valid.
func defaultMemory() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory size: %w", err)
			}
			half := kib << 10 / 2 / memoryQuantum * memoryQuantum
			return min(max(half, minMemory), maxMemory), nil
		}
	}
	return 0, errors.New("read memory size: no MemTotal in /proc/meminfo")
}

// SharedDir is the directory that is writable and the same, at the same path,
// outside and inside. Results come out through it.
func (h *Host) SharedDir() string { return filepath.Join(h.cfg.StateDir, "shared") }

// runDir holds sockets, logs and the record of the running machine; mode 0700.
func (h *Host) runDir() string { return filepath.Join(h.cfg.StateDir, "run") }

// ConsoleLog is the file that gets what the machine's kernel says of its death.
func (h *Host) ConsoleLog() string { return filepath.Join(h.runDir(), "console.log") }
