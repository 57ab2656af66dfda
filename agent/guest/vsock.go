package guest

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialHost connects to a port of the host.
func dialHost(port uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return connection(fd)
}

// connection makes a file of a connected socket that the runtime's poller serves.
func connection(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// listener is a listening vsock socket.
type listener struct{ fd int }

// backlog is how many connections may wait to be accepted.
const backlog = 128

func listen(port uint32) (*listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return &listener{fd}, nil
}

// serve accepts for ever and handles each connection of the host in a goroutine of its own. A connection from
// inside the guest, where anybody may try, is closed at once.
func (l *listener) serve(handle func(io.ReadWriteCloser)) error {
	for {
		fd, from, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOMEM:
			time.Sleep(10 * time.Millisecond) // until something is closed
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if vm, ok := from.(*unix.SockaddrVM); !ok || vm.CID != unix.VMADDR_CID_HOST {
			unix.Close(fd)
			continue
		}
		c, err := connection(fd)
		if err == nil {
			go handle(c)
		}
	}
}

// hungUp reports whether the other side of a connection is gone, bytes that it left notwithstanding.
func hungUp(c io.ReadWriteCloser) bool {
	file, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0
	})
	return gone || err != nil
}
