// Package sysmon lets the monitor thread of a program in Go oversleep. As long as the program does anything at all, the runtime's monitor (sysmon)
// looks every 20 µs whether a thread is held up in a system call. In a guest each of its looks is two exits. Not for a program whose
// goroutines wait in system calls side by side, as those of a VMM's disks: until the monitor looks, each keeps a processor of the runtime's.
package sysmon

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Slack is how much later than it means to the monitor may look: as long as it sleeps at most when there is nothing to see.
const Slack = 10 * time.Millisecond

// Slacken gives the monitor thread of process pid that slack (proc(5), timerslack_ns). What is held up by a system call then waits up to as
// long for another thread to take over. The caller must be the process
// itself, or hold CAP_SYS_NICE over it. The monitor is the first thread that a program in Go makes; if another release of Go does it
// otherwise, a thread that it has made for something else oversleeps.
func Slacken(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	first := 0
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil && id != pid && (first == 0 || id < first) {
			first = id
		}
	}
	if first == 0 {
		return fmt.Errorf("%s: no thread but the first", dir)
	}
	f, err := os.OpenFile(filepath.Join("/proc", strconv.Itoa(first), "timerslack_ns"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(strconv.FormatInt(Slack.Nanoseconds(), 10))
	return err
}
