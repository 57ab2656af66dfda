package boot

import (
	"encoding/binary"
	"fmt"
	"io"

	"spore/guestmem"
)

// Fields of Elf64_Ehdr and Elf64_Phdr (System V ABI).
const (
	elfHeaderSize  = 64
	elfPhdrSize    = 56
	elfClass64     = 2
	elfLittle      = 1
	elfMachineX86  = 62
	elfTypeExec    = 2
	elfTypeDyn     = 3
	elfSegmentLoad = 1
)

// ParseELF looks at a vmlinux: the PT_LOAD segments go to their physical addresses and the entry is e_entry,
// which in a kernel is physical and 64-bit.
func ParseELF(r io.ReaderAt, size int64) (*Image, error) {
	var h [elfHeaderSize]byte
	if err := readAt(r, size, h[:], 0, "ELF header"); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	kind, machine := le.Uint16(h[16:]), le.Uint16(h[18:])
	if string(h[:4]) != "\x7fELF" || h[4] != elfClass64 || h[5] != elfLittle || machine != elfMachineX86 ||
		kind != elfTypeExec && kind != elfTypeDyn {
		return nil, fmt.Errorf("%w: not an x86-64 ELF executable", ErrImage)
	}
	phoff, phsize, phnum := le.Uint64(h[32:]), le.Uint16(h[54:]), int(le.Uint16(h[56:]))
	if phsize != elfPhdrSize || phnum == 0 || phnum > maxSegments || phoff > uint64(size) {
		return nil, fmt.Errorf("%w: %d program headers of %d bytes at %#x", ErrImage, phnum, phsize, phoff)
	}
	table := make([]byte, phnum*elfPhdrSize)
	if err := readAt(r, size, table, int64(phoff), "program headers"); err != nil {
		return nil, err
	}
	im := &Image{Entry: guestmem.GPA(le.Uint64(h[24:])), InitrdMax: MMIOGapStart}
	for ; len(table) > 0; table = table[elfPhdrSize:] {
		if le.Uint32(table) != elfSegmentLoad {
			continue
		}
		s := Segment{
			GPA:      guestmem.GPA(le.Uint64(table[24:])),
			Offset:   int64(le.Uint64(table[8:])),
			FileSize: le.Uint64(table[32:]),
			MemSize:  le.Uint64(table[40:]),
		}
		if s.MemSize == 0 {
			continue
		}
		if err := s.check(size); err != nil {
			return nil, err
		}
		im.Segments = append(im.Segments, s)
	}
	return im, im.checkEntry()
}

// check judges one segment of an image of size bytes.
func (s Segment) check(size int64) error {
	switch {
	case s.FileSize > s.MemSize || s.MemSize > maxImage:
		return fmt.Errorf("%w: segment of %#x bytes in %#x", ErrImage, s.FileSize, s.MemSize)
	case s.GPA < HighMemory || s.GPA >= MMIOGapStart || s.MemSize > uint64(MMIOGapStart-s.GPA):
		return fmt.Errorf("%w: segment at %#x+%#x is not between 1 MiB and 3 GiB", ErrImage, s.GPA, s.MemSize)
	case s.Offset < 0 || s.Offset > size || s.FileSize > uint64(size-s.Offset):
		return fmt.Errorf("%w: segment's %#x bytes at %#x are past the end (%d bytes)", ErrImage, s.FileSize, s.Offset, size)
	}
	return nil
}

func (im *Image) checkEntry() error {
	for _, s := range im.Segments {
		if im.Entry >= s.GPA && im.Entry < s.GPA+guestmem.GPA(s.MemSize) {
			return nil
		}
	}
	return fmt.Errorf("%w: entry %#x is in no segment", ErrImage, im.Entry)
}
