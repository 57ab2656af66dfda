package vmm

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio/balloon"
	"spore/vmm/snapshot"
)

func members(s pageSet) (list []int) {
	for page := s.next(0, true); page < 64*len(s); page = s.next(page+1, true) {
		list = append(list, page)
	}
	return list
}

// TestOwnedPages touches pages of a file and pages of nothing in every way, and looks which of them are not the file's any more.
func TestOwnedPages(t *testing.T) {
	const pages = 16
	ram, err := mapRAM(2 * hugePage)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.unmap()
	if err := unix.Madvise(ram.bytes, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	f := memFile(t, "memory")
	if err := f.Truncate(hugePage); err != nil {
		t.Fatal(err)
	}
	if err := overlay(ram.bytes[:hugePage], f, 0, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
		t.Fatal(err)
	}
	page := func(n int) []byte { return ram.bytes[n*guestmem.PageSize:][:guestmem.PageSize] }
	const second = hugePage / guestmem.PageSize // the first page that is no file's
	sum := page(1)[0] + page(second + 1)[0]     // read
	page(2)[0], page(second + 2)[5] = 1, 1      // written
	page(3)[0], page(second + 3)[0] = sum, 0    // written, with what was there
	page(4)[0] = 1
	if err := unix.Madvise(page(4), unix.MADV_DONTNEED); err != nil { // given back, as the balloon does
		t.Fatal(err)
	}
	region := guestmem.Region{Host: ram.bytes}
	got, err := owned(pagemap(t), region)
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{2, 3, second + 1, second + 2, second + 3}; !slices.Equal(members(got), want) {
		t.Errorf("own pages %v, want %v", members(got), want)
	}
	m := &Machine{filled: pageSet{1}} // its first block
	m.withoutZeros(region, got)
	if want := []int{2, 3, second + 2}; !slices.Equal(members(got), want) {
		t.Errorf("own pages that are not zero where the file has nothing: %v, want %v", members(got), want)
	}
	if snapshot.BlockSize != hugePage {
		t.Errorf("a block is %d bytes, not a huge page", snapshot.BlockSize)
	}
	if _, err := owned(memFile(t, "no pagemap"), region); err == nil {
		t.Error("an empty file passed for a page table")
	}
}

// TestLogLastsAsLongAsASave looks when KVM keeps a dirty log of a machine: while a live snapshot needs it, and while it stands still
// after one, but not when it runs.
func TestLogLastsAsLongAsASave(t *testing.T) {
	m, p := newTestMachine(t, staircase(), nil)
	logged := func() bool {
		err := m.vm.DirtyLog(0, make(pageSet, guestmem.Words(len(m.ram.mem.Regions()[0].Host))))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		return err == nil
	}
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if logged() {
		t.Error("a log before anybody needs it")
	}
	for _, test := range []struct {
		name         string
		live, goOn   bool
		logged, runs bool
	}{
		{"stopped", false, false, false, false},
		{"live", true, false, true, false},
		{"live, and it goes on", true, true, false, true},
	} {
		saved, err := m.Save(within(t), memFile(t, "state"), memFile(t, "memory"), pagemap(t), test.live, test.goOn)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if logged() != test.logged || saved.GoesOn != test.runs || (saved.Before > 0) != test.live {
			t.Errorf("%s: log %v, saved %+v", test.name, logged(), saved)
		}
		if !test.runs {
			if err := m.Resume(within(t)); err != nil {
				t.Fatal(err)
			}
		}
		if logged() {
			t.Errorf("%s: a log goes on", test.name)
		}
	}
	if m.state != Running || m.ending.Load() {
		t.Errorf("the machine is %v (%v)", m.state, m.exit)
	}
}

// TestDiscardedMeanwhile gives a page back that a live snapshot has copied: the snapshot has what the guest would read there then.
func TestDiscardedMeanwhile(t *testing.T) {
	m, _ := newTestMachine(t, counting(), nil)
	const at, there = 0x320000, 0x330000
	for _, a := range []guestmem.GPA{at, there} {
		if err := m.ram.mem.WriteAt([]byte("old"), a); err != nil {
			t.Fatal(err)
		}
	}
	f, blocks := memFile(t, "memory"), make(pageSet, snapshot.BlockWords(m.cfg.Memory))
	if _, err := m.copyLive(t.Context(), f, pagemap(t), blocks); err != nil {
		t.Fatal(err)
	}
	if err := balloon.NewMemory(m.ram.mem, false).Discard(at, guestmem.PageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := m.copyWritten(t.Context(), f, blocks); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[int64]string{at: "\x00\x00\x00", there: "old"} {
		b := make([]byte, len(want))
		if _, err := f.ReadAt(b, a); err != nil || string(b) != want {
			t.Errorf("at %#x: %q, %v; want %q", a, b, err, want)
		}
	}
}
