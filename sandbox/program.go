package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// keepProgram copies a program into a record.
func keepProgram(path string, from *os.File) error {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, io.LimitReader(from, MaxProgram))
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("keep the program: %w", err)
	}
	return nil
}

// openProgram opens the program of a record that has one.
func (sb *Sandbox) openProgram() (f *os.File, size int64, err error) {
	if f, err = openRegular(sb.path(programFile), os.O_RDONLY); err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && (st.Size() == 0 || st.Size() > MaxProgram) {
		err = fmt.Errorf("%s: %d bytes are no program", f.Name(), st.Size())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
