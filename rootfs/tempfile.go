package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempFile makes a file in the store that has no name, and so is gone when its last descriptor is.
func (s *Store) tempFile() (*os.File, error) { return tempFileIn(s.dir) }

func tempFileIn(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("create unnamed file in %s: its file system has no O_TMPFILE, as network file systems do not; put the store elsewhere: %w", dir, err)
	}
	if err != nil {
		return nil, &os.PathError{Op: "create unnamed file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
}

// publish gives an unnamed file its name. A file that already has the name stays; the two are told
// apart by the caller, for whom they are the same content.
func publish(f *os.File, path string) error {
	old := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, old, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.LinkError{Op: "link", Old: old, New: path, Err: err}
	}
	return nil
}

// halfWritten is how the name of a file ends that is not yet what it will be.
const halfWritten = ".new"

// replaceFile puts data at path, replacing what is there in one step. The store lock must be held: the
// temporary name is fixed, so that a leftover is overwritten by the next.
func replaceFile(path string, data []byte) error {
	tmp := path + halfWritten
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
