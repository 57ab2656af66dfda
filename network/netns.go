package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// makeNetNS makes a network namespace and keeps it at path by a bind mount: it lasts until removeNetNS, whoever ends.
func makeNetNS(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := enterNewNetNS(); err != nil {
			return err
		}
		return os.NewSyscallError("mount", unix.Mount(threadNetNS(), path, "", unix.MS_BIND, ""))
	})
	if err != nil {
		return errors.Join(fmt.Errorf("make network namespace: %w", err), removeFile(path))
	}
	return nil
}

// enterNewNetNS moves the calling thread to a new namespace.
func enterNewNetNS() error {
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
}

// removeNetNS lets go of a namespace. One that is not there, or not mounted, is fine. What is in it goes when the last process
// and the last tap have left it.
func removeNetNS(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // until nothing is mounted there
		}
		if err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("remove network namespace: %w", &fs.PathError{Op: "umount", Path: path, Err: err})
		}
		return removeFile(path)
	}
}

// isNetNS reports whether a namespace is kept at path.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNetNS runs do on a thread in the namespace at path. What do starts and opens there is of that namespace.
func inNetNS(path string, do func() error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer f.Close()
	return onThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, os.NewSyscallError("setns", err))
		}
		return do()
	})
}

// threadNetNS is the path of the calling thread's namespace.
func threadNetNS() string {
	return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
}

// onThread runs do on a thread of its own, which ends with it: whatever do did to its thread is gone then.
func onThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the first thread cannot end, and it is the process to /proc
			done <- onThread(do)
			runtime.UnlockOSThread()
			return
		}
		done <- do() // the goroutine ends locked, and its thread with it
	}()
	return <-done
}
