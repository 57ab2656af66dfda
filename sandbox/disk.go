package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/snapshot"
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
