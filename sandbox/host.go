package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"spore/network"
)

// Host is what a supervisor uses of the machine it runs on. All fields but Secrets and Log are needed; Net and Networks by
// sandboxes with a network only.
type Host struct {
	VMM       string     // path of spore-vmm
	Kernel    string     // path of the guest's vmlinux or bzImage
	Initramfs string     // path of the cpio archive with the agent
	Templates *Templates // nil for none: every guest boots
	Pool      string     // directory of the pool of shells; "" for none
	Disks     string     // directory that writable layers are in
	Net       string     // path of spore-net
	Processor string     // path of the file that the answer to Processor is kept in; "" for none

	Networks *network.Networks
	Secrets  map[string]string // by name: those that were read from standard input

	Log *slog.Logger
}

func (h Host) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

// ErrNotRegular says that a path names something else than a plain file.
var ErrNotRegular = errors.New("not a regular file")

// openRegular opens a file that will be handed into a jail. It judges the descriptor, not the path: a link, a
// directory, a FIFO, a socket or a device is refused (BLK-05).
func openRegular(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("open %s: %w: it is a symbolic link", path, ErrNotRegular)
		}
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open %s: %w: it is a %s", path, ErrNotRegular, kindOf(st.Mode()))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return m.Type().String()
}

// files collects the descriptors that a VMM inherits, and their positions.
type files struct {
	list []*os.File
}

// add hands f over: close closes it in the supervisor.
func (fs *files) add(f *os.File) int {
	fs.list = append(fs.list, f)
	return len(fs.list) - 1
}

func (fs *files) close() {
	for _, f := range fs.list {
		f.Close()
	}
	fs.list = nil
}
