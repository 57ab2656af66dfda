package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"spore/internal/lossy"
	"spore/network/api"
)

// bounded writes lines to a file until that has its size. A pipe has none.
type bounded struct {
	to   io.Writer
	left int64         // bytes
	lost atomic.Uint64 // lines
}

// newBounded writes to a file of the configuration's, or to nowhere.
func newBounded(files []*os.File, f api.File, limit int64) (*bounded, error) {
	if f < 0 {
		return &bounded{to: io.Discard, left: 1 << 62}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(files[f].Fd()), &st); err != nil {
		return nil, fmt.Errorf("audit file: %w", os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		// A pipe, whose reader may be slow.
		if err := unix.SetNonblock(int(files[f].Fd()), true); err != nil {
			return nil, fmt.Errorf("audit file: %w", os.NewSyscallError("fcntl", err))
		}
		return &bounded{to: lossy.New(files[f]), left: 1 << 62}, nil
	}
	return &bounded{to: files[f], left: limit - st.Size}, nil
}

var errFull = errors.New("the audit file has its size")

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		b.lost.Add(1)
		return 0, errFull
	}
	return b.to.Write(p)
}

// logger writes JSON lines to the log file, if there is one.
func logger(sandbox string, files []*os.File, log api.File) *slog.Logger {
	if log < 0 {
		return lossy.Logger(nil, "")
	}
	return lossy.Logger(files[log], sandbox)
}
