package net

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// port is the descriptor that frames come from and go to, non-blocking, and what a Run waits for it and for kicks with: an epoll
// instance of its own, of which the runtime's poller knows no more than that something has happened. So one goroutine waits for all
// of it, and the poller wakes nobody for a frame that comes while others are being moved.
type port struct {
	fd   int // of frames
	wake int // an eventfd that Run waits for too

	poll *os.File        // the epoll instance; it reports edges, so nothing has to be read but frames
	raw  syscall.RawConn // of poll
	set  int             // its number
}

// Tags of what is in the epoll instance. A queue's kicks have its number.
const (
	tagPort = 16 + iota
	tagWake
)

// tunDevice is /dev/net/tun (Documentation/networking/tuntap.rst).
var tunDevice = unix.Mkdev(10, 200)

// newPort takes over f, in whatever mode it was opened.
func newPort(f *os.File) (p port, err error) {
	defer f.Close()
	p = port{fd: -1, wake: -1, set: -1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	raw, err := f.SyscallConn()
	if err != nil {
		return p, err
	}
	var st unix.Stat_t
	var inner error
	err = raw.Control(func(fd uintptr) {
		if inner = os.NewSyscallError("fstat", unix.Fstat(int(fd), &st)); inner == nil {
			p.fd, inner = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		}
	})
	switch {
	case err != nil:
		return p, err
	case inner != nil:
		return p, fmt.Errorf("duplicate descriptor: %w", inner)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK && !(st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == tunDevice):
		return p, fmt.Errorf("neither a tap nor a socket (mode %#o, device %#x)", st.Mode, st.Rdev)
	}
	if err := unix.SetNonblock(p.fd, true); err != nil {
		return p, os.NewSyscallError("fcntl", err)
	}
	if p.set, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return p, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(p.set, true); err != nil { // or package os would not have it polled
		return p, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(p.set))
	}
	p.poll = os.NewFile(uintptr(p.set), "network events")
	if p.raw, err = p.poll.SyscallConn(); err != nil {
		return p, err
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return p, os.NewSyscallError("eventfd2", err)
	}
	if err := p.control(unix.EPOLL_CTL_ADD, p.wake, unix.EPOLLIN, tagWake); err != nil {
		return p, err
	}
	return p, p.control(unix.EPOLL_CTL_ADD, p.fd, unix.EPOLLIN, tagPort)
}

// control is epoll_ctl(2), for edges.
func (p *port) control(op, fd int, events uint32, tag int32) error {
	e := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: tag}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.set, op, fd, &e))
}

// notifyWritable asks for an event when the descriptor takes frames again, or takes that back.
func (p *port) notifyWritable(on bool) error {
	events := uint32(unix.EPOLLIN)
	if on {
		events |= unix.EPOLLOUT
	}
	return p.control(unix.EPOLL_CTL_MOD, p.fd, events, tagPort)
}

// add listens for kicks of a queue. The function returned stops that.
func (p *port) add(kicks *os.File, queue int) (remove func(), err error) {
	raw, err := kicks.SyscallConn()
	if err != nil {
		return nil, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = p.control(unix.EPOLL_CTL_ADD, int(fd), unix.EPOLLIN, int32(queue)) })
	if err != nil || inner != nil {
		return nil, fmt.Errorf("listen for kicks of queue %d: %w", queue, errors.Join(err, inner))
	}
	return func() {
		raw.Control(func(fd uintptr) { p.control(unix.EPOLL_CTL_DEL, int(fd), 0, 0) })
	}, nil
}

// interrupt makes a wait return. Any goroutine may call it.
func (p *port) interrupt() { unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) } // it fails only when it has been called 2⁶⁴ times

func (p *port) close() error {
	var errs []error
	if p.poll != nil {
		errs = append(errs, p.poll.Close())
	}
	for _, fd := range []int{p.fd, p.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// closed reports whether an error of a port's means that its other side has gone: a socket's peer, or a tap's interface (EBADFD).
func closed(err error) bool {
	return err == unix.EPIPE || err == unix.ECONNRESET || err == unix.ENOTCONN || err == unix.EBADFD
}

// noOffset makes preadv2(2) and pwritev2(2) what readv and writev are: the disks need the former, and the fewer calls
// the process may make, the better.
const noOffset = ^uintptr(0)

// readv reads one frame without waiting.
func (p *port) readv(v []unix.Iovec) (int, error) { return vectored(unix.SYS_PREADV2, p.fd, v) }

// writev writes one frame without waiting.
func (p *port) writev(v []unix.Iovec) (int, error) { return vectored(unix.SYS_PWRITEV2, p.fd, v) }
