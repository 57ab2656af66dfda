package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// lateAfter is how long after its boot a machine goes without its late devices, unless it is asked to rehearse before.
const lateAfter = time.Second

// virtioDriver is the kernel's driver for virtio-mmio transports.
const virtioDriver = "virtio-mmio"

// late are the devices of the machine that a guest can do without until it has booted: a source of randomness, whose place the host's
// entropy in the Setup takes, and a balloon. The kernel knows them only as platform devices without a driver (agent.LateHID).
type late struct {
	once  sync.Once
	sysfs func() (*os.File, error) // the root of a sysfs that can be written
	say   func(string)
	timer *time.Timer // of attach; nil without
}

// schedule has attach called after that time, unless it has been by then. It is called before any attach.
func (l *late) schedule(after time.Duration) { l.timer = time.AfterFunc(after, l.attach) }

// attach gives them to the kernel's driver, the first time that it is called, and returns when they work. Any goroutine may call it. A
// machine may have none; one that the driver refuses is told of, and the guest goes on without it.
func (l *late) attach() {
	l.once.Do(func() {
		if l.timer != nil {
			l.timer.Stop() // or every copy of this machine would wake for it
		}
		root, err := l.sysfs()
		if err != nil {
			l.say(fmt.Sprintf("spore-agent: late devices: %v", err))
			return
		}
		defer root.Close()
		platform := filepath.Join("/proc/self/fd", strconv.Itoa(int(root.Fd())), "bus/platform")
		found, _ := filepath.Glob(filepath.Join(platform, "devices", agent.LateHID+":*")) // it fails only for its pattern
		for _, d := range found {
			err := writeFile(filepath.Join(d, "driver_override"), virtioDriver)
			if err == nil {
				err = writeFile(filepath.Join(platform, "drivers", virtioDriver, "bind"), filepath.Base(d))
			}
			if err != nil {
				l.say(fmt.Sprintf("spore-agent: late devices: %v", err))
			}
		}
	})
}

// freshSysfs is the root of a sysfs that is mounted nowhere, to look up paths from: programs find theirs read-only.
func freshSysfs() (*os.File, error) {
	fs, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "sysfs"), nil
}
