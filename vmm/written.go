package vmm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"spore/guestmem"
	"spore/vmm/snapshot"
)

// Two things know what was written to the RAM. The page table of this process knows all that was ever, by the guest or by a device:
// a page that was written is the process's own, one that was only read is still the memory file's. That costs nothing until
// somebody asks. What is written from one moment to another, KVM's dirty log and that of guestmem know; they are kept only while a
// live snapshot needs them, for under a dirty log KVM maps a guest's memory page by page and faults where it would not.

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). There is one for each page of the address space.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageShared  = 1 << 61 // it is a file's, or of shared memory

	pageEntry = 8 // bytes
)

// owned returns the pages of a region of RAM that are not the memory file's: those that were written since the machine woke, and
// of what was never in the file those that were touched.
func owned(pagemap *os.File, r guestmem.Region) (pageSet, error) {
	pages := make(pageSet, guestmem.Words(len(r.Host)))
	b := make([]byte, 4<<10) // small: the memory of this process is counted
	for page, n := 0, len(r.Host)/guestmem.PageSize; page < n; {
		b := b[:min(len(b), (n-page)*pageEntry)]
		if err := readAll(pagemap, b, int64(address(r.Host))/guestmem.PageSize*pageEntry+int64(page)*pageEntry); err != nil {
			return nil, fmt.Errorf("page table of RAM at %#x: %w", r.Base, err)
		}
		for ; len(b) > 0; b = b[pageEntry:] {
			if e := binary.LittleEndian.Uint64(b); e&(pagePresent|pageSwapped) != 0 && e&pageShared == 0 {
				pages.add(page)
			}
			page++
		}
	}
	return pages, nil
}

// withoutZeros takes those pages of a region out of the set that are zero where the memory file has nothing: there a page need not
// be written to be zero, and one that was written may have come with the 511 beside it.
func (m *Machine) withoutZeros(r guestmem.Region, pages pageSet) {
	for page := pages.next(0, true); page < len(r.Host)/guestmem.PageSize; page = pages.next(page+1, true) {
		at := page * guestmem.PageSize
		if !m.filled.has(int((r.Offset+int64(at))/snapshot.BlockSize)) && bytes.Equal(r.Host[at:at+guestmem.PageSize], zeroPage[:]) {
			pages.remove(page)
		}
	}
}

// withoutCopies takes those pages of a region out of the set that were copied from the memory file beforehand, and are still like it.
func (m *Machine) withoutCopies(region int, pages pageSet) error {
	if m.copied == nil {
		return nil
	}
	r, copied := m.ram.mem.Regions()[region], m.copied[region]
	b := make([]byte, copyRun*guestmem.PageSize)
	for first, count := copied.run(0, copyRun); count > 0; first, count = copied.run(first+count, copyRun) {
		b := b[:count*guestmem.PageSize]
		if err := readAll(m.base, b, r.Offset+int64(first)*guestmem.PageSize); err != nil {
			return fmt.Errorf("memory file: %w", err)
		}
		for page := first; page < first+count; page++ {
			at := page * guestmem.PageSize
			if pages.has(page) && bytes.Equal(r.Host[at:at+guestmem.PageSize], b[:guestmem.PageSize]) {
				pages.remove(page)
			}
			b = b[guestmem.PageSize:]
		}
	}
	return nil
}

// copyRun is how many pages are compared at a time.
const copyRun = 64

// logWrites begins or ends to note who writes what. When it has begun, every later write will be found by takeWritten, and
// every earlier one by owned. It may be called while the guest runs.
func (m *Machine) logWrites(on bool) error {
	if on == m.logging {
		return nil
	}
	if on {
		m.ram.mem.LogWrites()
	}
	if err := m.logs.Set(on); err != nil {
		return err
	}
	if !on {
		m.ram.mem.EndWrites()
	}
	m.logging = on
	return nil
}

// endLog ends the log of a machine that runs, after what must not wait for it: that takes some milliseconds. One that stands still keeps
// it until it runs.
func (m *Machine) endLog() {
	if m.state != Running {
		return
	}
	if err := m.logWrites(false); err != nil {
		m.log.Warn("a log of writes goes on", "error", err)
	}
}

// takeWritten returns which pages of a region of RAM were written since it was asked last, or since logWrites began.
func (m *Machine) takeWritten(region int) (pageSet, error) {
	pages := make(pageSet, guestmem.Words(len(m.ram.mem.Regions()[region].Host)))
	if err := m.vm.DirtyLog(uint32(region), pages); err != nil {
		return nil, err
	}
	m.ram.mem.TakeWrites(region, pages)
	return pages, nil
}

var zeroPage [guestmem.PageSize]byte
