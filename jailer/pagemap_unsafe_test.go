package jailer

import (
	"encoding/binary"
	"os"
	"testing"
	"unsafe"
)

// TestPagemapHidesFrames reads the entry of a page that is there: it says so, but not in which frame of the host's memory, which it does say to
// root otherwise.
func TestPagemapHidesFrames(t *testing.T) {
	const present, frames = 1 << 63, 1<<55 - 1
	page := make([]byte, os.Getpagesize())
	page[0] = 1
	entry := func(f *os.File) uint64 {
		t.Helper()
		var b [8]byte
		if _, err := f.ReadAt(b[:], int64(uintptr(unsafe.Pointer(&page[0])))/int64(os.Getpagesize())*8); err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(b[:])
	}
	f, err := Pagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if e := entry(f); e&present == 0 || e&frames != 0 {
		t.Errorf("entry %#x", e)
	}
	plain, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if e := entry(plain); os.Getuid() == 0 && e&frames == 0 {
		t.Logf("this kernel shows no frames even to root: %#x", e)
	}
	if _, err := Pagemap(-1); err == nil {
		t.Error("a page table of no process")
	}
}
