package session

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pseudo-terminal pair of the given size (0×0: unset).
func openTerminal(rows, cols uint16) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		// Not os.OpenFile: the process expects a terminal that blocks.
		path, slaveFD := fmt.Sprintf("/dev/pts/%d", n), -1
		if slaveFD, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
			slave = os.NewFile(uintptr(slaveFD), path)
		}
	}
	if err != nil {
		_ = master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	resize(master, rows, cols)
	return master, slave, nil
}

// resize sets the terminal's window size; the kernel sends SIGWINCH.
func resize(terminal *os.File, rows, cols uint16) {
	if rows == 0 || cols == 0 {
		return
	}
	raw, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}
