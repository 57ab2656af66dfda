package vsock

import (
	"context"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is the host's end of a connection or of the broker: a descriptor that was handed to this process, in the
// runtime's poller.
type socket struct {
	file *os.File
	raw  syscall.RawConn
}

// newSocket takes over fd.
func newSocket(fd int) (socket, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return socket{}, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return socket{}, err
	}
	return socket{f, raw}, nil
}

// adopt takes over f, in whatever mode it was opened.
func adopt(f *os.File) (socket, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return socket{}, err
	}
	fd, dup := -1, error(nil)
	if err := raw.Control(func(p uintptr) { fd, dup = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return socket{}, err
	}
	if dup != nil {
		return socket{}, os.NewSyscallError("fcntl", dup)
	}
	return newSocket(fd)
}

// interrupt makes everything that waits for s return, now and from now on.
func (s socket) interrupt() { s.file.SetDeadline(time.Unix(1, 0)) }

// interruptAfter calls interrupt when ctx ends. The function returned undoes both.
func (s socket) interruptAfter(ctx context.Context) (undo func()) {
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.interrupt()
		close(ran)
	})
	return func() {
		if !stop() {
			<-ran
		}
	}
}

// shutdown is shutdown(2). Its only error, that the peer is gone, shows elsewhere too.
func (s socket) shutdown(how int) {
	s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
}

// noOffset makes preadv2(2) and pwritev2(2) what readv and writev are: the disks need the former, and the fewer calls
// the process may make, the better.
const noOffset = -1

// writev writes as much of pieces as fd takes without waiting. Where it takes nothing the error is EAGAIN.
func writev(fd int, pieces [][]byte) (n int, err error) {
	for {
		n, err = unix.Pwritev2(fd, pieces, noOffset, 0)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// readv reads what fd has without waiting. Where it has nothing the error is EAGAIN; at its end n is 0.
func readv(fd int, pieces [][]byte) (n int, err error) {
	for {
		n, err = unix.Preadv2(fd, pieces, noOffset, 0)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// deaf reports whether the peer of fd will not read any more. On a Unix socket a write of nothing tells.
func deaf(fd int) bool {
	for {
		_, err := unix.Write(fd, nil)
		if err != unix.EINTR {
			return err == unix.EPIPE || err == unix.ECONNRESET
		}
	}
}
