package guestmem_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"spore/guestmem"
)

const page = guestmem.PageSize

// newMemory has RAM at 0–8 KiB, adjacent RAM at 8–12 KiB, a hole, and RAM at 1 MiB.
func newMemory(t testing.TB) *guestmem.Memory {
	t.Helper()
	var regions []guestmem.Region
	for _, r := range []struct {
		base guestmem.GPA
		size int
	}{{1 << 20, 2 * page}, {0, 2 * page}, {2 * page, page}} {
		host, err := guestmem.MapAnon(r.size)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { guestmem.Unmap(host) })
		regions = append(regions, guestmem.Region{Base: r.base, Host: host})
	}
	m, err := guestmem.New(regions...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewRefuses(t *testing.T) {
	host := make([]byte, 4*page)
	for name, regions := range map[string][]guestmem.Region{
		"nothing":        {},
		"an empty one":   {{}},
		"half a page":    {{Host: host[:page/2]}},
		"unaligned base": {{Base: 1, Host: host}},
		"overlap":        {{Host: host[:2*page]}, {Base: page, Host: host[2*page:]}},
		"wrap":           {{Base: ^guestmem.GPA(0) &^ (page - 1), Host: host[:2*page]}},
	} {
		if _, err := guestmem.New(regions...); err == nil {
			t.Errorf("%s: made a memory", name)
		}
	}
}

// TestMEM02 is the contract of the accessors at every edge (CVE-2023-41051).
func TestMEM02(t *testing.T) {
	m := newMemory(t)
	for _, c := range []struct {
		a          guestmem.GPA
		n          uint64
		slice, all bool // what Slice and what ReadAt accept
	}{
		{0, 1, true, true}, {0, 2 * page, true, true}, {0, 2*page + 1, false, true}, {0, 3 * page, false, true},
		{0, 3*page + 1, false, false}, {3*page - 1, 1, true, true}, {3 * page, 1, false, false}, {3 * page, 0, false, true},
		{1<<20 - 1, 1, false, false}, {1 << 20, 2 * page, true, true}, {1<<20 + 2*page, 0, false, true},
		{^guestmem.GPA(0), 1, false, false}, {^guestmem.GPA(0) - 3, 8, false, false}, {8, ^uint64(0), false, false},
	} {
		if _, err := m.Slice(c.a, c.n); (err == nil) != c.slice || err != nil && !errors.Is(err, guestmem.ErrRange) {
			t.Errorf("MEM-02: Slice(%#x, %d): %v", c.a, c.n, err)
		}
		if c.n > 1<<20 {
			continue
		}
		p := make([]byte, c.n)
		if err := m.ReadAt(p, c.a); (err == nil) != c.all {
			t.Errorf("MEM-02: ReadAt(%#x, %d): %v", c.a, c.n, err)
		}
		if err := m.WriteAt(p, c.a); (err == nil) != c.all {
			t.Errorf("MEM-02: WriteAt(%#x, %d): %v", c.a, c.n, err)
		}
	}
}

func TestCopyAcrossRegions(t *testing.T) {
	m := newMemory(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), page/16)
	if err := m.WriteAt(want, 2*page-100); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := m.ReadAt(got, 2*page-100); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
}

func TestWords(t *testing.T) {
	m := newMemory(t)
	if err := errors.Join(m.StoreUint64(8, 0x1122334455667788), m.StoreUint16(10, 0xaaaa), m.StoreUint32(16, 7)); err != nil {
		t.Fatal(err)
	}
	v64, _ := m.LoadUint64(8)
	v32, _ := m.LoadUint32(16)
	lo, _ := m.LoadUint16(8)
	hi, _ := m.LoadUint16(10)
	if v64 != 0x11223344aaaa7788 || v32 != 7 || lo != 0x7788 || hi != 0xaaaa {
		t.Errorf("%#x %#x %#x %#x", v64, v32, lo, hi)
	}
	for _, a := range []guestmem.GPA{1, 3 * page, ^guestmem.GPA(0), 1<<20 - 2} {
		_, err := m.LoadUint16(a)
		if !errors.Is(err, guestmem.ErrRange) || !errors.Is(m.StoreUint16(a, 1), guestmem.ErrRange) {
			t.Errorf("a word at %#x: %v", a, err)
		}
	}
	if _, err := m.LoadUint64(3*page - 4); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("a word over the edge: %v", err)
	}
}

func Example() {
	host, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer guestmem.Unmap(host)
	mem, err := guestmem.New(guestmem.Region{Base: 0, Host: host})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(mem.WriteAt([]byte("guest"), 0x1000))
	_, err = mem.Slice(0xfffff, 2) // one byte too many
	fmt.Println(err)
	// Output:
	// <nil>
	// outside guest memory
}
