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
	if err := Take(f, how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Take is Open for a file that is open already, in any mode.
func Take(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}
