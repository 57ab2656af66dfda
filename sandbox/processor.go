package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// maxProcessor bounds the file that Processor keeps, in bytes.
const maxProcessor = 16 << 10

// Processor is what KVM can virtualise here, for api.Config. It is asked once for each start of the host and of its KVM, and kept in the
// file at path, for it is the longest of all the questions that KVM is asked. An empty path keeps nothing. It is empty if KVM does
// not answer: then the VMM asks itself, and says what is wrong.
func Processor(device *os.File, path string) []byte {
	key, err := processorKey(device)
	if err != nil {
		return nil
	}
	if kept, err := readSome(path, maxProcessor); err == nil && bytes.HasPrefix(kept, key) {
		kept = kept[len(key):]
		if entries, err := kvm.ParseCPUID(kept); err == nil && len(entries) > 0 {
			return kept
		}
	}
	entries, err := kvm.SupportedCPUID(device)
	if err != nil {
		return nil
	}
	answer := kvm.AppendCPUID(nil, entries)
	if path != "" {
		keep(path, append(key, answer...))
	}
	return answer
}

// keep replaces the file at path. If that fails, the next to come asks again.
func keep(path string, b []byte) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp")
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if errors.Join(err, f.Close(), os.Rename(f.Name(), path)) != nil {
		os.Remove(f.Name())
	}
}

// processorKey changes with every start of the host, and with every load of its KVM, which makes the device anew.
func processorKey(device *os.File) ([]byte, error) {
	raw, err := device.SyscallConn()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if inner := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); inner != nil || err != nil {
		return nil, errors.Join(inner, err)
	}
	boot, err := readSome("/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "processor 1 %s %d %d %d.%09d\n", bytes.TrimSpace(boot), st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// readSome reads a file of at most limit bytes.
func readSome(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, limit+1)
	n, err := unix.Read(fd, b)
	if err == nil && n > limit {
		err = io.ErrShortBuffer
	}
	return b[:max(n, 0)], err
}
