// Package initramfs writes the archive that a guest boots from: the agent as /init and the directories it
// mounts on. It is not compressed, since unpacking costs more than reading, and the same input gives the same
// bytes (cpio newc; linux Documentation/driver-api/early-userspace/buffer-format.rst).
package initramfs

import (
	"fmt"
	"io"
)

// directories of the initramfs. The agent mounts on each of them.
var directories = []string{"dev", "proc", "sys", "lower", "upper", "newroot"}

// Write writes an initramfs whose /init is the program in init.
func Write(w io.Writer, init []byte) error {
	a := archive{w: w}
	for _, d := range directories {
		a.entry(d, 0o040755, 0, 0, nil)
	}
	a.entry("dev/console", 0o020600, 5, 1, nil) // the kernel opens it for PID 1 before anything is mounted
	a.entry("dev/null", 0o020666, 1, 3, nil)    // and without a console the Go runtime opens this
	a.entry("init", 0o100755, 0, 0, init)
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}

// archive writes entries until the first error.
type archive struct {
	w   io.Writer
	n   int64 // bytes written
	ino int
	err error
}

// entry writes one file: header, name and content, each padded to four bytes.
func (a *archive) entry(name string, mode, major, minor int, content []byte) {
	a.ino++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name))
	a.pad()
	a.write(content)
	a.pad()
}

func (a *archive) write(p []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(p)
		a.n += int64(n)
	}
}

func (a *archive) pad() {
	var zeros [3]byte
	a.write(zeros[:(4-a.n%4)%4])
}
