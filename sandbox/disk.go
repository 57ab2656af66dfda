package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/sparse"
	"spore/snapshot"
	"spore/vmm/api"
)

// errMemoryDisk says why a sandbox cannot start again.
var errMemoryDisk = errors.New("its disk was in memory only, as it came from an encrypted snapshot, and is gone: make another with 'spore run --from'")

// openDisk opens the writable layer: the file beside the record or, of a guest that wakes from what is encrypted at rest, a
// copy in memory that the kernel frees with the last process that has it.
func (v *supervisor) openDisk(from *snapshot.Dormant) (err error) {
	switch {
	case v.disk != nil: // of an earlier attempt
		return nil
	case !v.sb.Config.MemoryDisk:
		if v.disk, err = openRegular(v.sb.path(writableFile), os.O_RDWR); err != nil {
			return fmt.Errorf("writable layer: %w", err)
		}
		return nil
	case from == nil:
		return errMemoryDisk
	}
	fd, err := unix.MemfdCreate("writable", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("writable layer: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "writable")
	if err := from.FillDisk(v.ctx, f); err != nil {
		return errors.Join(fmt.Errorf("writable layer: %w", err), f.Close())
	}
	v.disk = f
	return nil
}

// duplicate is a descriptor of the same open file.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// prepareDisk copies the writable layer while the guest runs.
func (v *supervisor) prepareDisk(ctx context.Context, to *snapshot.Draft) error {
	if _, err := v.machine.request(ctx, api.Request{Op: api.OpTrack}); err != nil {
		return err
	}
	return to.PrepareDisk(ctx, v.disk, v.sb.Config.Disk)
}

// finishDisk copies what was written to it meanwhile, as the VMM says that saved the rest. The guest stands still, or has not written.
func (v *supervisor) finishDisk(ctx context.Context, to *snapshot.Draft, saved *api.Saved) error {
	written, err := writtenTo(saved, v.sb.Config.Disk)
	if err != nil {
		return err
	}
	return to.FinishDisk(ctx, v.disk, written)
}

// errExtents is what is wrong with a list of them: the VMM may be its guest's.
var errExtents = errors.New("the VMM lists parts of its disk that are not there, out of order or twice")

// writtenTo is what was written to the writable layer, which has size bytes, while it was copied.
func writtenTo(s *api.Saved, size int64) ([]sparse.Extent, error) {
	if s == nil {
		return nil, nil
	}
	var list []sparse.Extent
	end := int64(0) // of the one before
	for _, e := range s.Disks[writableID] {
		if e.Offset < end || e.Offset > size || e.Length <= 0 || e.Length > size-e.Offset || len(list) == api.MaxExtents {
			return nil, errExtents
		}
		end = e.Offset + e.Length
		list = append(list, sparse.Extent(e))
	}
	return list, nil
}
