// Package lossy writes to whoever may be slow or gone, without ever waiting: what does not fit is dropped. A jailed process logs by
// it, so that a reader of logs cannot stop a guest.
package lossy

import (
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// Writer writes to a non-blocking descriptor. What it has no room for is lost, and that is no error.
type Writer struct {
	file *os.File // keeps fd open
	fd   int
}

// New returns a Writer on f, which is in non-blocking mode and stays the caller's.
func New(f *os.File) Writer {
	w := Writer{f, -1}
	// Not Fd, which is entitled to make it wait. A closed file has no descriptor, and then writes fail.
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { w.fd = int(fd) })
	}
	return w
}

// Write implements io.Writer.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := unix.Write(w.fd, p); err != nil && err != unix.EAGAIN {
		return 0, os.NewSyscallError("write", err)
	}
	return len(p), nil
}

// Logger writes JSON lines about a sandbox to f, as New has it; nil is silent.
func Logger(f *os.File, sandbox string) *slog.Logger {
	if f == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewJSONHandler(New(f), nil)).With("sandbox", sandbox)
}
