package net

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// port is the descriptor that frames come from and go to, non-blocking and in the runtime's poller.
type port struct {
	file *os.File
	raw  syscall.RawConn
}

// tunDevice is /dev/net/tun (Documentation/networking/tuntap.rst).
var tunDevice = unix.Mkdev(10, 200)

// newPort takes over f, in whatever mode it was opened.
func newPort(f *os.File) (port, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return port{}, err
	}
	fd, dup := -1, error(nil)
	var st unix.Stat_t
	err = raw.Control(func(p uintptr) {
		if dup = os.NewSyscallError("fstat", unix.Fstat(int(p), &st)); dup == nil {
			fd, dup = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3)
		}
	})
	switch {
	case err != nil:
		return port{}, err
	case dup != nil:
		return port{}, fmt.Errorf("duplicate descriptor: %w", dup)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK && !(st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == tunDevice):
		unix.Close(fd)
		return port{}, fmt.Errorf("neither a tap nor a socket (mode %#o, device %#x)", st.Mode, st.Rdev)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return port{}, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "network")
	if raw, err = file.SyscallConn(); err != nil {
		file.Close()
		return port{}, err
	}
	return port{file, raw}, nil
}

// interruptAfter makes everything that waits for p return when ctx ends. The function returned undoes that.
func (p port) interruptAfter(ctx context.Context) (undo func()) {
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		p.file.SetDeadline(time.Unix(1, 0))
		close(ran)
	})
	return func() {
		if !stop() {
			<-ran
			p.file.SetDeadline(time.Time{})
		}
	}
}

// closed reports whether an error of a port's means that its other side has gone: a socket's peer, or a tap's interface (EBADFD).
func closed(err error) bool {
	return err == unix.EPIPE || err == unix.ECONNRESET || err == unix.ENOTCONN || err == unix.EBADFD
}

// noOffset makes preadv2(2) and pwritev2(2) what readv and writev are: the disks need the former, and the fewer calls
// the process may make, the better.
const noOffset = ^uintptr(0)

// readv reads one frame without waiting.
func readv(fd uintptr, v []unix.Iovec) (int, error) { return vectored(unix.SYS_PREADV2, fd, v) }

// writev writes one frame without waiting.
func writev(fd uintptr, v []unix.Iovec) (int, error) { return vectored(unix.SYS_PWRITEV2, fd, v) }
