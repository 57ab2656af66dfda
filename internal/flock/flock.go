// Package flock locks files for as long as a process holds them open (flock(2)): the kernel drops the lock however the
// process ends.
package flock

import (
	"os"

	"golang.org/x/sys/unix"
)

// Open opens the file at path, makes it if it is missing (mode 0600), and takes a lock on it: unix.LOCK_EX or LOCK_SH, with
// LOCK_NB to fail with unix.EWOULDBLOCK and not to wait. Closing the file releases it.
func Open(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return f, nil
}
