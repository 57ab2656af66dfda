// Package snapshot keeps machines at rest: the state, the memory and the disk of a guest, as files that a VMM wakes from.
//
// A Dormant is one such machine, ready to wake: nothing is verified, decrypted or put together on the way from it to a
// running guest. A Draft is one in the making, which appears whole or not at all.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spore/internal/sparse"
)

// Names of the files in the directory of a dormant machine.
const (
	specFile   = "machine.json"
	stateFile  = "state"
	memoryFile = "memory"
	diskFile   = "disk" // packed
	hotFile    = "hot"  // pages to copy at once; it may be missing, and is not part of what is signed
	draftExt   = ".new"
)

// Version of Spec. Another one is refused.
const Version = 1

// maxSpec bounds what is read back, in bytes.
const maxSpec = 64 << 10

// Spec is the shape of a dormant machine.
type Spec struct {
	Version int    `json:"version"`
	CPUs    int    `json:"cpus"`
	Memory  int64  `json:"memory_bytes"`
	Disk    int64  `json:"disk_bytes"`     // of the writable layer
	Main    uint64 `json:"main,omitempty"` // number of the process in the guest that is the sandbox's command; 0 if none ran
}

// Dormant is a machine at rest in a directory. Its files never change. Any number of machines may wake from it at once.
type Dormant struct {
	Spec Spec
	dir  string
}

// Open opens the dormant machine in dir. fs.ErrNotExist says that there is none.
func Open(dir string) (*Dormant, error) {
	d := &Dormant{dir: dir}
	b, err := readBounded(filepath.Join(dir, specFile), maxSpec)
	if err != nil {
		return nil, fmt.Errorf("open dormant machine: %w", err)
	}
	if err := json.Unmarshal(b, &d.Spec); err != nil {
		return nil, fmt.Errorf("open dormant machine %s: %w", dir, err)
	}
	if d.Spec.Version != Version {
		return nil, fmt.Errorf("open dormant machine %s: version %d, this build reads %d", dir, d.Spec.Version, Version)
	}
	return d, nil
}

// Dir is where it is.
func (d *Dormant) Dir() string { return d.dir }

// OpenState opens the state file, read-only.
func (d *Dormant) OpenState() (*os.File, error) { return d.open(stateFile) }

// OpenMemory opens the memory file, read-only.
func (d *Dormant) OpenMemory() (*os.File, error) { return d.open(memoryFile) }

// OpenHot opens the list of pages that machines write to when they wake. fs.ErrNotExist says that nobody has noted it yet.
func (d *Dormant) OpenHot() (*os.File, error) { return d.open(hotFile) }

// NoteHot keeps what write writes to a file for OpenHot.
func (d *Dormant) NoteHot(write func(*os.File) error) error {
	f, err := os.CreateTemp(d.dir, "."+hotFile+"-*")
	if err != nil {
		return fmt.Errorf("note hot pages: %w", err)
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.dir, hotFile))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("note hot pages: %w", err), os.Remove(f.Name()))
	}
	return nil
}

func (d *Dormant) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open dormant machine: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open dormant machine: %s is no regular file", f.Name()) // SNAP-05
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// FillDisk writes a copy of the disk to an empty file.
func (d *Dormant) FillDisk(ctx context.Context, to *os.File) error {
	packed, err := d.open(diskFile)
	if err != nil {
		return err
	}
	defer packed.Close()
	if err := sparse.Unpack(ctx, to, sparse.Whole(packed), d.Spec.Disk); err != nil {
		return fmt.Errorf("copy disk of dormant machine: %w", err)
	}
	return nil
}

// NewDisk writes a copy of the disk to path, where no file may be yet; mode 0600.
func (d *Dormant) NewDisk(ctx context.Context, path string) error {
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(d.FillDisk(ctx, out), out.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Size is what the files of the machine itself take on the disk, in bytes.
func (d *Dormant) Size() (int64, error) {
	return d.size(append(plainParts[:len(plainParts):len(plainParts)], specFile))
}

// size is what files of the machine take on the disk, in bytes.
func (d *Dormant) size(files []string) (total int64, err error) {
	for _, name := range files {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(d.dir, name), &st); err != nil {
			return 0, &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		total += st.Blocks * 512
	}
	return total, nil
}

// Remove deletes it. Machines that woke from it live on.
func (d *Dormant) Remove() error { return Remove(d.dir) }

// Remove deletes the dormant machine in dir, whatever is left of it.
func Remove(dir string) error {
	gone := dir + ".gone"
	if err := os.Rename(dir, gone); err != nil {
		return fmt.Errorf("remove dormant machine: %w", err)
	}
	return errors.Join(destroyKey(gone), os.RemoveAll(gone))
}

// Sweep deletes what a crash left in a directory of dormant machines: drafts and what was being removed. Nobody may be
// drafting in it.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == draftExt || ext == ".gone" {
			path := filepath.Join(dir, e.Name())
			errs = append(errs, destroyKey(path), os.RemoveAll(path))
		}
	}
	return errors.Join(append(errs, err)...)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d of a regular file", path, st.Size(), limit)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil && st.Size() > 0 {
		return nil, err
	}
	return b, nil
}
