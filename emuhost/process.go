package emuhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processFile names the QEMU process of a directory, from its first moment.
const processFile = "qemu.pid"

// processBirth is a process's start time as the kernel writes it, or "" when
// it is gone: with it, a process id that was given to another process does not
// mislead.
func processBirth(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	stat := string(b)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// writeProcess records the QEMU process of dir.
func writeProcess(dir string, pid int) error {
	line := fmt.Sprintf("%d %s\n", pid, processBirth(pid))
	return replaceFile(filepath.Join(dir, processFile), []byte(line))
}

// endMachine kills the QEMU process recorded in dir, if it lives, waits until
// it is gone and removes the record.
func endMachine(ctx context.Context, dir string) error {
	path := filepath.Join(dir, processFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read process of the emulated host: %w", err)
	}
	var pid int
	var birth string
	if _, err := fmt.Sscan(string(b), &pid, &birth); err == nil && pid > 1 && processBirth(pid) == birth {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d: %w", pid, err)
		}
		for processBirth(pid) == birth {
			if err := pause(ctx, 2*time.Millisecond); err != nil {
				return fmt.Errorf("end process %d: %w", pid, err)
			}
		}
	}
	return os.Remove(path)
}
