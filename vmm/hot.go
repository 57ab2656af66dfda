package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"spore/guestmem"
)

// Hot writes which pages of a machine that woke have been written since: a bit for each page of Config.Memory, in the order
// of the memory file, in little-endian words. pagemap is /proc/PID/pagemap of this process. Another machine that wakes from the same
// snapshot will write to most of them, and most of those it reads first: if they are copied before it runs, it faults once for each
// and not twice.
func (m *Machine) Hot(to, pagemap *os.File) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.woke || m.state == Stopped {
		return fmt.Errorf("list written pages: the machine did not wake, or has ended: %w", ErrState)
	}
	var b []byte
	for _, r := range m.ram.mem.Regions() {
		pages, err := owned(pagemap, r)
		if err != nil {
			return err
		}
		for _, word := range pages {
			b = binary.LittleEndian.AppendUint64(b, word)
		}
	}
	return writeAll(to, b, 0)
}

// readHot reads what Hot wrote, by region. It is a help and no more: of a file of another shape there is none.
func (r *ram) readHot(f *os.File, memory int64) (hot []pageSet, err error) {
	b := make([]byte, 8*guestmem.Words(int(memory)))
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read hot pages: %w", err)
	}
	if n != len(b) {
		return nil, nil
	}
	for _, region := range r.mem.Regions() {
		pages := make(pageSet, guestmem.Words(len(region.Host)))
		for w := range pages {
			pages[w] = binary.LittleEndian.Uint64(b)
			b = b[8:]
		}
		hot = append(hot, pages)
	}
	return hot, nil
}

// heat copies hot pages. A kernel that cannot (MADV_POPULATE_WRITE, Linux 5.14) changes nothing.
func (r *ram) heat(hot []pageSet) {
	for i, pages := range hot {
		region := r.mem.Regions()[i]
		end := len(region.Host) / guestmem.PageSize
		for first, n := pages.run(0, end); n > 0 && first < end; first, n = pages.run(first+n, end) {
			n = min(n, end-first)
			if err := unix.Madvise(region.Host[first*guestmem.PageSize:(first+n)*guestmem.PageSize], unix.MADV_POPULATE_WRITE); err != nil {
				return
			}
		}
	}
}
