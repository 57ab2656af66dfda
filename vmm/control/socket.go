package control

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/vmm/api"
)

// Socket is a Conn over a connected stream socket in non-blocking mode.
type Socket struct {
	file  *os.File
	raw   syscall.RawConn
	files []*os.File
}

// NewSocket serves f, which stays the caller's.
func NewSocket(f *os.File) (*Socket, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Socket{file: f, raw: raw}, nil
}

// Write sends bytes.
func (s *Socket) Write(p []byte) (int, error) { return s.file.Write(p) }

// Read receives bytes, and keeps the descriptors that come with them for Files. Nobody gets more of them into this process
// than a machine may have.
func (s *Socket) Read(p []byte) (n int, err error) {
	oob := make([]byte, rights.Space(api.MaxFiles))
	var oobn int
	outer := s.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case outer != nil:
		return 0, outer
	case err != nil:
		return 0, os.NewSyscallError("recvmsg", err)
	}
	s.keep(oob[:oobn])
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (s *Socket) keep(oob []byte) {
	for _, fd := range rights.Take(oob, api.MaxFiles-len(s.files)) {
		s.files = append(s.files, os.NewFile(uintptr(fd), "file of a request"))
	}
}

// Files returns what came since the last call.
func (s *Socket) Files() []*os.File {
	files := s.files
	s.files = nil
	return files
}
