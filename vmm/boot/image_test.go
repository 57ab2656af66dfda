package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"spore/guestmem"
)

// elfWith is a vmlinux with one PT_LOAD for each segment; file offsets are as given.
func elfWith(entry uint64, size int, segments ...Segment) []byte {
	le := binary.LittleEndian
	b := make([]byte, max(size, elfHeaderSize+len(segments)*elfPhdrSize))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], elfTypeExec)
	le.PutUint16(b[18:], elfMachineX86)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], elfHeaderSize)
	le.PutUint16(b[54:], elfPhdrSize)
	le.PutUint16(b[56:], uint16(len(segments)))
	for i, s := range segments {
		p := b[elfHeaderSize+i*elfPhdrSize:]
		le.PutUint32(p, elfSegmentLoad)
		le.PutUint64(p[8:], uint64(s.Offset))
		le.PutUint64(p[24:], uint64(s.GPA))
		le.PutUint64(p[32:], s.FileSize)
		le.PutUint64(p[40:], s.MemSize)
	}
	return b
}

// bzImageWith is a bzImage of size bytes with one setup sector.
func bzImageWith(size int, change func(b []byte)) []byte {
	le := binary.LittleEndian
	b := make([]byte, size)
	b[hdrSetupSects] = 1
	le.PutUint16(b[hdrBootFlag:], bootFlagMagic)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x6a
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], 0x20f)
	le.PutUint32(b[hdrInitrdMax:], 0x7fffffff)
	le.PutUint16(b[hdrXLoadFlags:], xloadKernel64)
	le.PutUint64(b[hdrPrefAddress:], 16<<20)
	le.PutUint32(b[hdrInitSize:], 4<<20)
	if change != nil {
		change(b)
	}
	return b
}

func memory(t testing.TB, size int) *guestmem.Memory {
	t.Helper()
	b, err := guestmem.MapAnon(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guestmem.Unmap(b) })
	m, err := guestmem.New(guestmem.Region{Base: 0, Host: b})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestLDR01 lists the lies that a kernel image can tell (CVE-2022-23523 and kin).
func TestLDR01BadImages(t *testing.T) {
	le := binary.LittleEndian
	good := Segment{GPA: 1 << 20, Offset: 0x1000, FileSize: 0x800, MemSize: 0x1000}
	change := func(f func(s *Segment)) []byte {
		s := good
		f(&s)
		return elfWith(1<<20, 0x2000, s)
	}
	for _, test := range []struct {
		name  string
		image []byte
	}{
		{"empty", nil},
		{"short magic", []byte{0x7f, 'E'}},
		{"short ELF header", []byte("\x7fELF\x02\x01\x01")},
		{"text", bytes.Repeat([]byte("hello "), 1000)},
		{"no segments", elfWith(1<<20, 0x2000)},
		{"segment past the end", change(func(s *Segment) { s.Offset = 0x1fff })},
		{"offset overflows", change(func(s *Segment) { s.Offset = -1 })},
		{"file size overflows", change(func(s *Segment) { s.FileSize = 1<<64 - 1; s.MemSize = 1<<64 - 1 })},
		{"more file than memory", change(func(s *Segment) { s.MemSize = 1 })},
		{"below 1 MiB", change(func(s *Segment) { s.GPA = 0x1000 })},
		{"in the MMIO gap", change(func(s *Segment) { s.GPA = DeviceBase })},
		{"into the MMIO gap", change(func(s *Segment) { s.GPA = MMIOGapStart - 0x800 })},
		{"huge memory size", change(func(s *Segment) { s.MemSize = 1 << 40 })},
		{"entry nowhere", elfWith(0, 0x2000, good)},
		{"too many segments", func() []byte {
			b := elfWith(1<<20, 0x4000, good)
			le.PutUint16(b[56:], 0xffff)
			return b
		}()},
		{"program headers past the end", func() []byte {
			b := elfWith(1<<20, 0x2000, good)
			le.PutUint64(b[32:], 0x1ff0)
			return b
		}()},
		{"old boot protocol", bzImageWith(8192, func(b []byte) { le.PutUint16(b[hdrVersion:], 0x206) })},
		{"no 64-bit entry", bzImageWith(8192, func(b []byte) { b[hdrXLoadFlags] = 0 })},
		{"nothing but setup", bzImageWith(1024, nil)},
		{"setup past the end", bzImageWith(8192, func(b []byte) { b[hdrSetupSects] = 60 })},
		{"absurd load address", bzImageWith(8192, func(b []byte) { le.PutUint64(b[hdrPrefAddress:], 1<<63) })},
		{"absurd init size", bzImageWith(8192, func(b []byte) { le.PutUint32(b[hdrInitSize:], 0xffffffff) })},
	} {
		t.Run(test.name, func(t *testing.T) {
			im, err := Parse(bytes.NewReader(test.image), int64(len(test.image)))
			if !errors.Is(err, ErrImage) {
				t.Errorf("got %+v, %v; want ErrImage", im, err)
			}
		})
	}
}

func TestLoadELF(t *testing.T) {
	b := elfWith(0x100010, 0x3000, Segment{GPA: 1 << 20, Offset: 0x1000, FileSize: 4, MemSize: 0x2000},
		Segment{GPA: 2 << 20, Offset: 0x2000, FileSize: 0x1000, MemSize: 0x1000})
	copy(b[0x1000:], "text")
	copy(b[0x2000:], "data")
	im, err := Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if im.Entry != 0x100010 || im.End() != 2<<20+0x1000 {
		t.Errorf("entry %#x, end %#x", im.Entry, im.End())
	}
	mem := memory(t, 4<<20)
	if err := im.Load(mem, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	var got [4]byte
	for at, want := range map[guestmem.GPA]string{1 << 20: "text", 2 << 20: "data"} {
		if err := mem.ReadAt(got[:], at); err != nil || string(got[:]) != want {
			t.Errorf("at %#x: %q, %v; want %q", at, got, err, want)
		}
	}
	if err := im.Load(memory(t, 2<<20), bytes.NewReader(b)); !errors.Is(err, ErrImage) {
		t.Errorf("load into 2 MiB: %v, want ErrImage", err)
	}
	if err := im.Load(mem, bytes.NewReader(b[:0x2800])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("load of a file that shrank: %v, want unexpected EOF", err)
	}
}

func TestBzImage(t *testing.T) {
	b := bzImageWith(16384, nil)
	im, err := Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if im.Entry != 16<<20+entry64 || im.End() != 20<<20 || im.InitrdMax != 0x80000000 || im.Segments[0].Offset != 1024 {
		t.Errorf("got %+v", im)
	}
	mem := memory(t, 32<<20)
	initrd, err := LoadInitrd(mem, bytes.NewReader([]byte("cpio")), 4, Range{0, 32 << 20}, im)
	if err != nil || initrd.Base != 32<<20-pageSize {
		t.Fatalf("initrd at %+v, %v", initrd, err)
	}
	if err := WriteParams(mem, im, Params{Cmdline: "quiet", Initrd: initrd, RSDP: ACPIBase, RAM: RAM(32 << 20)}); err != nil {
		t.Fatal(err)
	}
	z := make([]byte, pageSize)
	if err := mem.ReadAt(z, ZeroPageBase); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if le.Uint32(z[hdrRamdisk:]) != uint32(initrd.Base) || le.Uint32(z[hdrRamdiskSize:]) != 4 || z[hdrLoader] != 0xff ||
		le.Uint64(z[bpRSDP:]) != uint64(ACPIBase) || le.Uint64(z[hdrPrefAddress:]) != 16<<20 || z[bpE820Entries] != 3 {
		t.Errorf("boot_params: % x", z[hdrSetupSects:hdrEnd])
	}
	if _, err := LoadInitrd(mem, bytes.NewReader(nil), 13<<20, Range{0, 32 << 20}, im); err == nil {
		t.Error("an initramfs of 13 MiB fits between 20 and 32 MiB")
	}
}

func TestRAMLeavesTheGap(t *testing.T) {
	for _, test := range []struct {
		size uint64
		want []Range
		e820 int
	}{
		{64 << 20, []Range{{0, 64 << 20}}, 3},
		{3 << 30, []Range{{0, 3 << 30}}, 3},
		{5 << 30, []Range{{0, 3 << 30}, {4 << 30, 2 << 30}}, 4},
	} {
		got := RAM(test.size)
		if len(got) != len(test.want) || got[0] != test.want[0] || got[len(got)-1] != test.want[len(got)-1] {
			t.Errorf("RAM(%#x) = %+v, want %+v", test.size, got, test.want)
		}
		var usable uint64
		entries := e820(got)
		for _, e := range entries {
			if e.kind == e820RAM {
				usable += e.Size
			}
		}
		if lost := test.size - usable; len(entries) != test.e820 || lost != uint64(HighMemory-LowMemoryEnd) {
			t.Errorf("%#x bytes: %d entries, %#x bytes not usable", test.size, len(entries), lost)
		}
	}
}

func FuzzELF(f *testing.F) {
	f.Add(elfWith(1<<20, 0x2000, Segment{GPA: 1 << 20, Offset: 0x1000, FileSize: 0x800, MemSize: 0x1000}))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := ParseELF(bytes.NewReader(b), int64(len(b)))
		judge(t, im, err, len(b))
	})
}

func FuzzBzImage(f *testing.F) {
	f.Add(bzImageWith(4096, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := ParseBzImage(bytes.NewReader(b), int64(len(b)))
		judge(t, im, err, len(b))
	})
}

// judge holds an accepted image to what Load relies on.
func judge(t *testing.T, im *Image, err error, size int) {
	if err != nil {
		return
	}
	for _, s := range im.Segments {
		if s.GPA < HighMemory || s.GPA+guestmem.GPA(s.MemSize) > MMIOGapStart || s.FileSize > s.MemSize ||
			s.Offset < 0 || uint64(s.Offset)+s.FileSize > uint64(size) {
			t.Fatalf("accepted %+v of %d bytes", s, size)
		}
	}
	if im.Header != nil && len(im.Header) > hdrEnd-hdrSetupSects {
		t.Fatalf("header of %d bytes", len(im.Header))
	}
}
