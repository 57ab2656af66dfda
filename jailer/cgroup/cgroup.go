// Package cgroup gives each jailed process a cgroup v2 directory of its own, below one that the caller may write: what
// the process can use of the host is bounded, and all of it can be frozen and killed at once.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mountPoint = "/sys/fs/cgroup"
	parent     = "spore" // below which root's groups are
)

// ErrUnavailable says that there is no cgroup v2 directory with the needed controllers that this process may write.
var ErrUnavailable = errors.New("no cgroup to be had")

// Limits of a group. Zero leaves a limit as it is, unlimited by default.
type Limits struct {
	Memory   int64   // bytes, page cache included; never swapped
	Pids     int     // threads count
	CPUs     float64 // processors' worth of time
	IOWeight int     // share of a disk that others want too, 1 to 10000; others have 100 by default. A kernel may have no scheduler for it
}

// Group is one cgroup directory.
type Group struct{ dir *os.File }

// controllers that a group's limits need.
var controllers = []string{"cpu", "memory", "pids", "io"}

// Root returns the directory that groups of this process are below, and makes it ready: /sys/fs/cgroup/spore for root,
// and the delegated cgroup that the process is in for others. It may be called again and again.
func Root() (string, error) {
	base, err := root()
	if err != nil {
		return "", err
	}
	if err := enable(filepath.Dir(base)); errors.Is(err, unix.EBUSY) && os.Geteuid() != 0 {
		err = stepAside(filepath.Dir(base))
		if err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return base, enable(base)
}

func root() (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join(mountPoint, parent), nil
	}
	own, err := ownPath()
	if filepath.Base(own) == aside {
		own = filepath.Dir(own)
	}
	return filepath.Join(own, parent), err
}

// aside is where a supervisor that is not root's goes: a group that gives controllers to groups below it may have no
// process of its own (cgroup-v2.rst, "No Internal Process Constraint").
const aside = "spore-supervisors"

// stepAside moves this process into a group of its own below the delegated one, and tries again.
func stepAside(delegated string) error {
	path := filepath.Join(delegated, aside)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := write(path, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := enable(delegated); err != nil {
		return fmt.Errorf("%w (is another process in %s?)", err, delegated)
	}
	return nil
}

// Path is where a group of that name is, if there is one.
func Path(name string) (string, error) {
	base, err := root()
	return filepath.Join(base, name), err
}

// StartLimit is longer than a start takes: an empty group that is older does not wait for its process.
const StartLimit = time.Minute

// Empty returns the groups below ours that no process is in, whose names begin with prefix, and that are older than age: one
// that was made just now may be about to get its process.
func Empty(prefix string, age time.Duration) ([]string, error) {
	base, err := root()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || time.Since(st.ModTime()) < age {
			continue
		}
		path := filepath.Join(base, e.Name())
		if b, err := os.ReadFile(filepath.Join(path, "cgroup.events")); err == nil && strings.Contains(string(b), "populated 0") {
			all = append(all, path)
		}
	}
	return all, nil
}

// ownPath is the directory of the cgroup that this process is in.
func ownPath() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(mountPoint, path), nil
		}
	}
	return "", fmt.Errorf("%w: this process is in no cgroup v2 group", ErrUnavailable)
}

// enable gives the controllers to the groups below dir.
func enable(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	there := strings.Fields(string(have))
	for _, c := range controllers {
		found := false
		for _, h := range there {
			found = found || h == c
		}
		if !found {
			return fmt.Errorf("%w: %s has no %s controller", ErrUnavailable, dir, c)
		}
	}
	if err := write(dir, "cgroup.subtree_control", "+"+strings.Join(controllers, " +")); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Create makes the group of that name, which no other has, with limits. The caller removes it.
func Create(name string, l Limits) (*Group, error) {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return nil, fmt.Errorf("make cgroup: %q is no name", name)
	}
	path, err := Path(name)
	if err != nil {
		return nil, err
	}
	g, err := create(path, l)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if errors.Is(err, fs.ErrNotExist) { // the first group since the machine started
		if _, err := Root(); err != nil {
			return nil, err
		}
		g, err = create(path, l)
	}
	if err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return g, nil
}

func create(path string, l Limits) (_ *Group, err error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err // JAIL-11: an existing one is not ours
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Rmdir(path))
		}
	}()
	dir, err := unix.Open(path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	g := &Group{os.NewFile(uintptr(dir), path)}
	for _, s := range l.settings() {
		if err := writeAt(dir, s[0], s[1]); err != nil && !(s[2] == "optional" && errors.Is(err, fs.ErrNotExist)) {
			g.dir.Close()
			return nil, fmt.Errorf("limit %s: %w", path, err)
		}
	}
	return g, nil
}

// settings are file, content, and whether a kernel may lack the file.
func (l Limits) settings() [][3]string {
	const period = 100_000 // µs
	var s [][3]string
	if l.Memory > 0 {
		s = append(s, [3]string{"memory.max", strconv.FormatInt(l.Memory, 10), ""}, [3]string{"memory.swap.max", "0", "optional"},
			[3]string{"memory.oom.group", "1", ""})
	}
	if l.Pids > 0 {
		s = append(s, [3]string{"pids.max", strconv.Itoa(l.Pids), ""})
	}
	if l.CPUs > 0 {
		s = append(s, [3]string{"cpu.max", fmt.Sprintf("%d %d", int(l.CPUs*period), period), ""})
	}
	if l.IOWeight > 0 {
		s = append(s, [3]string{"io.weight", fmt.Sprintf("default %d", l.IOWeight), "optional"})
	}
	return s
}

// Dir is the group's directory, for a process to be born into. It is the group's own.
func (g *Group) Dir() *os.File { return g.dir }

// Path is the group's directory by name.
func (g *Group) Path() string { return g.dir.Name() }

// Freeze stops every process of the group, or lets it go on.
func (g *Group) Freeze(stop bool) error {
	v := "0"
	if stop {
		v = "1"
	}
	return write(g.Path(), "cgroup.freeze", v)
}

// Remove kills what is left in the group, waits for its end, and removes the group. ctx bounds the wait.
func (g *Group) Remove(ctx context.Context) error {
	return errors.Join(Remove(ctx, g.Path()), g.dir.Close())
}

// Remove is for a group that another process made and did not remove. A group that is not there is removed.
func Remove(ctx context.Context, path string) error {
	err := write(path, "cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := waitEmpty(ctx, path); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	if err := unix.Rmdir(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

func write(dir, file, content string) error {
	return writeAt(unix.AT_FDCWD, filepath.Join(dir, file), content)
}

// writeAt writes without the poller, which would take up every file of a cgroup and drop it again.
func writeAt(dir int, file, content string) error {
	fd, err := unix.Openat(dir, file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(content)); err != nil {
		return &fs.PathError{Op: "write", Path: file, Err: err}
	}
	return nil
}
