package main

import "encoding/binary"

// elf32PVH is a minimal 32-bit ELF file that is loaded at 1 MiB and entered by the PVH protocol
// (xen/include/public/arch-x86/hvm/start_info.h): one segment with the code, one note with its address.
func elf32PVH(code []byte) []byte {
	const (
		base       = 0x100000
		headerSize = 52
		entrySize  = 32
		noteAt     = headerSize + 2*entrySize
		noteSize   = 12 + 4 + 4
		codeAt     = noteAt + noteSize
	)
	le := binary.LittleEndian
	u32 := func(b []byte, words ...uint32) []byte {
		for _, w := range words {
			b = le.AppendUint32(b, w)
		}
		return b
	}
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(le.AppendUint16(b, 2), 3) // an executable, for i386
	b = u32(b, 1, base, headerSize, 0, 0)         // version, entry, program headers, section headers, flags
	for _, h := range []uint16{headerSize, entrySize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, h)
	}
	b = u32(b, 1, codeAt, base, base, uint32(len(code)), uint32(len(code)), 5, 4) // PT_LOAD
	b = u32(b, 4, noteAt, 0, 0, noteSize, noteSize, 4, 4)                         // PT_NOTE
	b = u32(b, 4, 4, 18)                                                          // name and value of 4 bytes, XEN_ELFNOTE_PHYS32_ENTRY
	b = append(b, 'X', 'e', 'n', 0)
	b = u32(b, base)
	return append(b, code...)
}
