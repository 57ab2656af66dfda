package guestmem_test

import (
	"testing"

	"spore/guestmem"
)

// TestWritesAreNoted writes in every way there is and looks which pages are noted, once.
func TestWritesAreNoted(t *testing.T) {
	m := newMemory(t) // regions: 0–8 KiB, 8–12 KiB, 1 MiB–1 MiB+8 KiB
	taken := func() (all [3]uint64) {
		for i := range all {
			m.TakeWrites(i, all[i:i+1])
		}
		return all
	}
	m.WriteAt([]byte{1}, 0)
	m.TakeWrites(0, nil)
	if got := taken(); got != [3]uint64{} {
		t.Errorf("without a log: %b", got)
	}
	m.LogWrites()
	for _, test := range []struct {
		name  string
		write func()
		want  [3]uint64
	}{
		{"nothing", func() {}, [3]uint64{}},
		{"a byte", func() { m.WriteAt([]byte{1}, page) }, [3]uint64{2}},
		{"across regions", func() { m.WriteAt(make([]byte, 2*page-1), page+1) }, [3]uint64{2, 1}},
		{"refused", func() { m.WriteAt(make([]byte, page), 3*page-1) }, [3]uint64{}},
		{"16 bits", func() { m.StoreUint16(2*page, 1) }, [3]uint64{0, 1}},
		{"32 bits", func() { m.StoreUint32(1<<20, 1) }, [3]uint64{0, 0, 1}},
		{"64 bits", func() { m.StoreUint64(1<<20+page, 1) }, [3]uint64{0, 0, 2}},
		{"told", func() { m.Wrote(0, 3*page) }, [3]uint64{3, 1}},
		{"told of too much", func() { m.Wrote(1<<20, 1<<40) }, [3]uint64{0, 0, 3}},
		{"told of nobody's", func() { m.Wrote(1<<19, 1) }, [3]uint64{}},
		{"told of the end", func() { m.Wrote(^guestmem.GPA(0), ^uint64(0)) }, [3]uint64{}},
	} {
		test.write()
		if got := taken(); got != test.want {
			t.Errorf("%s: noted %b, want %b", test.name, got, test.want)
		}
	}
	m.WriteAt([]byte{1}, 0)
	m.EndWrites()
	m.WriteAt([]byte{1}, page)
	if got := taken(); got != [3]uint64{} {
		t.Errorf("after the log: %b", got)
	}
	m.LogWrites()
	if got := taken(); got != [3]uint64{} {
		t.Errorf("a second log begins with %b", got)
	}
}
