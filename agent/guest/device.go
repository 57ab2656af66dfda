package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// deviceLimit is how long the kernel may take to find a disk. It looks for persistent memory beside everything else,
// and does not wait for it before it starts us.
const deviceLimit = 10 * time.Second

// awaitDevice waits until the kernel has made the node at path.
func awaitDevice(path string) error {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, filepath.Dir(path), unix.IN_CREATE); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	var events [4096]byte
	for end := time.Now().Add(deviceLimit); ; {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("the kernel found no %s within %v", path, deviceLimit)
		}
		p := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, int(left.Milliseconds())+1); err == nil && n > 0 {
			if _, err := unix.Read(watch, events[:]); err != nil {
				return os.NewSyscallError("read", err)
			}
		}
	}
}
