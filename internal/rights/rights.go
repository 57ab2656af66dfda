// Package rights passes descriptors through Unix sockets (SCM_RIGHTS, unix(7)).
package rights

import (
	"os"

	"golang.org/x/sys/unix"
)

// Space is what a receiver needs for a control message with n descriptors, in bytes.
func Space(n int) int { return unix.CmsgSpace(4 * n) }

// Take returns the descriptors in the control messages oob, most of them at most, in their order. Nobody gets more of them into this
// process than he may: the others are closed. They are the caller's, who has asked for them with MSG_CMSG_CLOEXEC.
func Take(oob []byte, most int) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel writes none that is not one
	}
	for i := range messages {
		list, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // of another kind
		}
		for _, fd := range list {
			if len(fds) < most {
				fds = append(fds, fd)
			} else {
				unix.Close(fd)
			}
		}
	}
	return fds
}

// Pair returns two connected Unix sockets of that type, neither of which survives an exec: ours is in non-blocking mode, theirs, which is
// to be given away, is not.
func Pair(kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), nil
}

// Writer writes to a socket, and gives descriptors along with the first byte. The files stay the caller's.
type Writer struct {
	Socket *os.File // in non-blocking mode, or one whose peer reads
	Files  []*os.File
}

// Write sends p, all of it, and with the first of it the files.
func (w *Writer) Write(p []byte) (int, error) {
	if len(w.Files) == 0 {
		return w.Socket.Write(p)
	}
	var fds []int
	for _, f := range w.Files {
		fds = append(fds, int(f.Fd()))
	}
	raw, err := w.Socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var inner error
	if err := raw.Write(func(fd uintptr) bool {
		for {
			n, inner = unix.SendmsgN(int(fd), p, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			if inner != unix.EINTR {
				return inner != unix.EAGAIN
			}
		}
	}); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, os.NewSyscallError("sendmsg", inner)
	}
	w.Files = nil
	if n == len(p) {
		return n, nil // writing nothing fails where the other end has read all and closed
	}
	rest, err := w.Socket.Write(p[n:])
	return n + rest, err
}
