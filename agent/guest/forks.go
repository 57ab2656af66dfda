package guest

import (
	"os"

	"golang.org/x/sys/unix"
)

// maxRefusals is how many refused forks make a fork bomb. A program that merely meets the limit gives up, or
// waits before it tries again; a bomb gets here within a second or so and would go on for ever.
const maxRefusals = 1000

// guard ends the process when it and its children become a fork bomb. Stop it when the process has ended. The
// kernel tells of refusals by a change of the file that counts them, so that watching costs nothing meanwhile.
func (p *process) guard() (stop func()) {
	if p.group.dir == nil {
		return func() {}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return func() {}
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	for _, dir := range []string{p.group.path, p.group.root} {
		// Without the watch a bomb ends with the command's time.
		_, _ = unix.InotifyAddWatch(fd, dir+"/pids.events", unix.IN_MODIFY)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := changes.Read(buf); err != nil {
				return
			}
			if p.group.refusals() >= maxRefusals {
				p.kill()
				return
			}
		}
	}()
	return func() { changes.Close() }
}
