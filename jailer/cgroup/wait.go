package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// waitEmpty waits until no process is in the group. The kernel says so by modifying cgroup.events (cgroup-v2.rst,
// "[Un]populated Notification").
func waitEmpty(ctx context.Context, path string) error {
	events := filepath.Join(path, "cgroup.events")
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(watch), "cgroup.events")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(watch, events, unix.IN_MODIFY); err != nil && err != unix.ENOENT {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	buffer := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
	for {
		b, err := os.ReadFile(events)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "populated 0") {
			return nil
		}
		if _, err := f.Read(buffer); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}
