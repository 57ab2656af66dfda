// Package sandbox is the life of one sandbox as the user sees it: created, started, watched, stopped, removed.
// It owns the record on disk, starts the jailed VMM, speaks to the agent in the guest, and turns every end
// into an Outcome. It links no device code.
package sandbox

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"spore/agent"
	"spore/jailer"
	"spore/vmm/api"
)

// Defaults and limits of a Config.
const (
	DefaultCPUs    = 1
	DefaultMemory  = 512 << 20 // bytes
	DefaultDisk    = 1 << 30   // bytes
	DefaultPids    = 512
	DefaultTimeout = 10 * time.Minute
	MinDisk        = 16 << 20
	MaxDisk        = 1 << 40
	MaxPids        = 1 << 20
	memoryStep     = 2 << 20
)

// RootDevice is how the guest sees the image.
type RootDevice string

// The root devices: virtio-blk keeps a page cache in the guest; pmem maps the host's page cache into it (DAX).
const (
	RootBlock RootDevice = "block"
	RootPmem  RootDevice = "pmem"
)

// ProgramPath is where in its guest a program is that comes from outside the image.
const ProgramPath = "/tmp/program"

// MaxProgram bounds such a program, in bytes.
const MaxProgram = agent.MaxProgram

// User is who the command runs as inside the guest.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Home   string   `json:"home,omitempty"`
}

// Config is what the user asked for. It is written once, when the sandbox is created, and holds no secret.
type Config struct {
	ID      string            `json:"id"`             // 12 hex digits
	Name    string            `json:"name,omitempty"` // unique; a named sandbox keeps its writable layer
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`

	Image       string `json:"image"`        // as the user wrote it
	ImageDigest string `json:"image_digest"` // what it was then
	ImagePath   string `json:"image_path"`   // the EROFS file

	Args     []string `json:"args"`              // argv of the command; at least one
	Program  bool     `json:"program,omitempty"` // the record has a file for the guest, which is put at ProgramPath before the command starts
	Env      []string `json:"env,omitempty"`
	Dir      string   `json:"dir"` // working directory, absolute
	User     User     `json:"user"`
	TTY      bool     `json:"tty,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"` // standard input is open; otherwise it is empty
	Hostname string   `json:"hostname"`

	CPUs     int           `json:"cpus"`
	Memory   int64         `json:"memory_bytes"`
	Disk     int64         `json:"disk_bytes"` // size of the writable layer
	Pids     int           `json:"pids"`
	Timeout  time.Duration `json:"timeout_ns"` // of the command; 0 only if the user asked for none
	ReadOnly bool          `json:"read_only,omitempty"`

	Root         RootDevice `json:"root_device"`
	DebugConsole bool       `json:"debug_console,omitempty"`

	Network *Network `json:"network,omitempty"` // nil: no network device at all

	MemoryDisk bool `json:"memory_disk,omitempty"` // the writable layer is in memory only and ends with the sandbox: it was encrypted

	Cold    bool     `json:"cold,omitempty"`    // boot, whatever templates there are, and leave none
	Prepare []string `json:"prepare,omitempty"` // a command that is run before the template is taken

	JailWithout []jailer.Layer `json:"jail_without,omitempty"` // layers that may be missing where the host does not offer them
	AutoRemove  bool           `json:"auto_remove,omitempty"`  // the record goes when the command ends
}

// ErrConfig is matched by every error about what the user asked for.
var ErrConfig = errors.New("invalid sandbox")

var (
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)
	idPattern   = regexp.MustCompile(`^[0-9a-f]{12}$`)
)

// checks are the rules of a Config, one line each; the first that objects wins.
var checks = []func(*Config) string{
	func(c *Config) string {
		return unless(c.Name == "" || namePattern.MatchString(c.Name), "name %q: use letters, digits, '_', '.' and '-', at most 63, first a letter or digit", c.Name)
	},
	func(c *Config) string {
		return unless(len(c.Args) > 0 && c.Args[0] != "", "no command: give one after the image, the image has none of its own")
	},
	func(c *Config) string {
		return unless(c.CPUs >= 1 && c.CPUs <= api.MaxVCPUs, "--cpus %d: use 1 to %d", c.CPUs, api.MaxVCPUs)
	},
	func(c *Config) string {
		return unless(c.Memory >= api.MinMemory && c.Memory <= api.MaxMemory, "--memory %d bytes: use %d MiB to %d GiB", c.Memory, api.MinMemory>>20, api.MaxMemory>>30)
	},
	func(c *Config) string {
		return unless(c.Memory%memoryStep == 0, "--memory %d bytes: use a multiple of 2 MiB", c.Memory)
	},
	func(c *Config) string {
		return unless(c.Disk >= MinDisk && c.Disk <= MaxDisk, "--disk %d bytes: use %d MiB to %d TiB", c.Disk, MinDisk>>20, MaxDisk>>40)
	},
	func(c *Config) string {
		return unless(c.Pids >= 1 && c.Pids <= MaxPids, "--pids %d: use 1 to %d", c.Pids, MaxPids)
	},
	func(c *Config) string {
		return unless(c.Timeout >= 0, "--timeout %s: use a positive time, or 0 for none", c.Timeout)
	},
	func(c *Config) string {
		return unless(path.IsAbs(c.Dir), "--workdir %q: use an absolute path", c.Dir)
	},
	func(c *Config) string {
		return unless(c.Root == RootBlock || c.Root == RootPmem, "--root-device %q: use block or pmem", c.Root)
	},
	func(c *Config) string {
		return unless(len(c.Hostname) <= 64 && !strings.ContainsAny(c.Hostname, "/ \t\n"), "--hostname %q: at most 64 characters without spaces", c.Hostname)
	},
	func(c *Config) string {
		return unless(!c.Cold || len(c.Prepare) == 0, "--cold and --prepare: what is prepared is a template, which --cold does without")
	},
	func(c *Config) string {
		if c.Network == nil {
			return ""
		}
		return c.Network.objection()
	},
	func(c *Config) string {
		for _, e := range c.Env {
			if name, _, ok := strings.Cut(e, "="); !ok || name == "" || strings.ContainsRune(e, 0) {
				return fmt.Sprintf("--env %q: use NAME=VALUE", e)
			}
		}
		return ""
	},
	func(c *Config) string {
		for _, a := range c.Args {
			if strings.ContainsRune(a, 0) {
				return "an argument of the command holds a NUL byte"
			}
		}
		return ""
	},
}

func unless(ok bool, format string, args ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// Validate reports the first thing wrong with c, in the words of the command line.
func (c *Config) Validate() error {
	for _, check := range checks {
		if objection := check(c); objection != "" {
			return fmt.Errorf("%w: %s", ErrConfig, objection)
		}
	}
	return nil
}

// Ephemeral reports whether the writable layer is lost when the command ends.
func (c *Config) Ephemeral() bool { return c.Name == "" }
