package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"spore/internal/sparse"
)

// Draft is a dormant machine in the making: a directory that Publish gives its name. State and Memory are for the VMM to
// write to.
type Draft struct {
	State  *os.File
	Memory *os.File

	dir  string   // that it will be
	disk *os.File // copied while its machine runs, not packed yet; nil otherwise
}

// NewDraft begins a dormant machine at dir. A draft that was there, of a process that was killed, is replaced: the caller
// sees to it that there is only one.
func NewDraft(dir string) (_ *Draft, err error) {
	d := &Draft{dir: dir}
	if err := os.RemoveAll(dir + draftExt); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	if err := os.MkdirAll(dir+draftExt, 0o700); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("begin snapshot: %w", err), d.Discard())
		}
	}()
	if d.State, err = d.create(stateFile); err != nil {
		return nil, err
	}
	d.Memory, err = d.create(memoryFile)
	return d, err
}

func (d *Draft) create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(d.dir+draftExt, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// unpackedFile is the disk of a draft before it is packed.
const unpackedFile = "disk.unpacked"

// PrepareDisk copies a disk of size bytes whose machine runs: what it writes from before the call on is for FinishDisk.
func (d *Draft) PrepareDisk(ctx context.Context, disk *os.File, size int64) (err error) {
	if d.disk, err = d.create(unpackedFile); err == nil {
		_, err = sparse.Copy(ctx, d.disk, disk, size)
	}
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}

// FinishDisk copies what was written since PrepareDisk. The machine must stand still; afterwards it may run on.
func (d *Draft) FinishDisk(ctx context.Context, disk *os.File, written []sparse.Extent) error {
	for _, e := range written {
		if err := sparse.Again(ctx, d.disk, disk, e); err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
	}
	return nil
}

// PackDisk makes the disk of the snapshot from what was prepared and finished.
func (d *Draft) PackDisk(ctx context.Context, size int64) error {
	return errors.Join(d.TakeDisk(ctx, d.disk, size), os.Remove(d.disk.Name()))
}

// TakeDisk copies a disk of size bytes. Its machine must stand still.
func (d *Draft) TakeDisk(ctx context.Context, disk *os.File, size int64) error {
	out, err := d.create(diskFile)
	if err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	if err := errors.Join(sparse.Pack(ctx, out, disk, size), out.Close()); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}

// Begin makes the memory that of base, which has size bytes: the VMM writes over it what has changed since. It is not put beneath
// afterwards, for where what was written ends a file system says in its own units only (tmpfs with huge pages, ZFS, large
// clusters). The file must be empty.
func (d *Draft) Begin(ctx context.Context, base *os.File, size int64) error {
	if _, err := sparse.Copy(ctx, d.Memory, base, size); err != nil {
		return fmt.Errorf("copy memory: %w", err)
	}
	return nil
}

// Whole makes the memory, all of whose pages the VMM wrote that are not zero, size bytes long.
func (d *Draft) Whole(size int64) error {
	if err := d.Memory.Truncate(size); err != nil {
		return fmt.Errorf("end memory: %w", err)
	}
	return nil
}

// Publish makes the draft the dormant machine at its directory, where none may be.
func (d *Draft) Publish(spec Spec) (*Dormant, error) {
	spec.Version = Version
	err := writeSpec(d.dir+draftExt, spec)
	if err == nil {
		err = d.closeFiles()
	}
	if err == nil {
		err = os.Rename(d.dir+draftExt, d.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finish snapshot: %w", err), d.Discard())
	}
	return &Dormant{Spec: spec, dir: d.dir}, nil
}

func writeSpec(dir string, spec Spec) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, specFile), b, 0o600)
}

// Discard deletes the draft; after Publish there is none.
func (d *Draft) Discard() error { return errors.Join(d.closeFiles(), os.RemoveAll(d.dir+draftExt)) }

func (d *Draft) closeFiles() error {
	var errs []error
	for _, f := range []**os.File{&d.State, &d.Memory, &d.disk} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}
