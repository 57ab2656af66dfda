// Package jailer puts one process, the VMM or the one that forwards for a guest, into its jail. Start clones a child into its own namespaces, which then
// carries out a plan: a list of system calls, prepared before, that take away the file system, the descriptors, the
// capabilities and the limits, and run the program last. The program's first instruction finds the jail closed, and no
// thread of it was ever outside. Enter, called by the program, does what execve(2) would undo.
//
// The jail holds because the process needs nothing from the host by name. Every file reaches it as a
// descriptor, so its root is empty, its network has no interface and its filter has no open. A process that is there to make
// connections (Config.Network) keeps a network instead, and nothing else.
package jailer

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// FirstFile is the descriptor number of Config.Files[0] in the jailed process.
const FirstFile = 3

// MaxFiles bounds Config.Files.
const MaxFiles = 64

// maxStrings bounds what Config.Args and Config.Env take together, in bytes.
const maxStrings = 64 << 10

// Config is a jail. Every field must be set but Name, Args, Env, Stderr, Network, Descriptors and Without.
type Config struct {
	Name   string     // argv[0]; "" is spore-vmm
	Exe    *os.File   // the VMM's binary, opened read-only or O_PATH; run by descriptor, so no path need be reachable
	Args   []string   // after argv[0]
	Env    []string   // the whole environment; usually empty
	UID    uint32     // host uid the process has outside its user namespace; not 0
	GID    uint32     // host gid likewise; not 0
	Files  []*os.File // become descriptors 3, 4, … of the process, and there are no others
	Stderr *os.File   // descriptor 2; nil is /dev/null

	Filter   []byte   // the compiled system-call filter that the program is born with; it must allow the execveat. nil is none, for tests
	FileSize uint64   // the largest file that the process may write, in bytes: that of its largest disk
	Cgroup   *os.File // a cgroup v2 directory, into which the process is born; nil is the caller's, if Without has Cgroup

	// Network keeps the process in the network namespace of the thread that calls Start, and lets Landlock allow it to connect by
	// TCP. All other layers stay: it may bind no port, and its filter says what sockets it may make.
	Network     bool
	Descriptors uint64  // how many the process may have; 0 is 1024
	Without     []Layer // layers that may be missing where the host does not offer them
}

// ErrConfig is matched by every error about a Config that cannot be a jail.
var ErrConfig = errors.New("invalid jail")

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Exe == nil:
		return fmt.Errorf("%w: no executable", ErrConfig)
	case c.UID == 0 || c.GID == 0:
		return fmt.Errorf("%w: uid %d, gid %d: neither may be 0", ErrConfig, c.UID, c.GID)
	case len(c.Files) > MaxFiles:
		return fmt.Errorf("%w: %d files, at most %d", ErrConfig, len(c.Files), MaxFiles)
	}
	room := maxStrings
	for _, list := range [][]string{c.Args, c.Env} {
		for _, s := range list {
			if room -= len(s) + 2*8; room < 0 {
				return fmt.Errorf("%w: arguments and variables of more than %d bytes, 16 for each included", ErrConfig, maxStrings)
			}
			if strings.IndexByte(s, 0) >= 0 {
				return fmt.Errorf("%w: argument or variable %q has a zero byte", ErrConfig, s)
			}
		}
	}
	for i, f := range c.Files {
		if f == nil {
			return fmt.Errorf("%w: file %d is nil", ErrConfig, i)
		}
	}
	return nil
}
