package guest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// openTerminal makes a pseudo-terminal: its slave is all three streams of the process, its master is ours.
func (p *process) openTerminal(size agent.Winsize, uid int) error {
	fd, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: err}
	}
	master := os.NewFile(uintptr(fd), "terminal")
	p.tty, p.stdin = master, master
	p.outputs = []output{{master, agent.FrameStdout}}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return os.NewSyscallError("TIOCGPTN", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return os.NewSyscallError("TIOCSPTLCK", err)
	}
	if err := setSize(master, size); err != nil {
		return err
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	for range 3 {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, f)
	}
	return os.Chown(path, uid, 5)
}

// setSize changes the size of a terminal. It must not call Fd, which would take the master off the poller.
func setSize(tty *os.File, size agent.Winsize) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("TIOCSWINSZ", ioctlErr)
}

// resize changes the size of the process's terminal, if it has one.
func (p *process) resize(size agent.Winsize) error {
	if p.tty == nil {
		return nil
	}
	return setSize(p.tty, size)
}
