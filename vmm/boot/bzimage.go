package boot

import (
	"encoding/binary"
	"fmt"
	"io"

	"spore/guestmem"
)

// Offsets of the setup header (boot.rst, "The Real-Mode Kernel Header"), in the file and in boot_params alike.
const (
	hdrSetupSects   = 0x1f1
	hdrBootFlag     = 0x1fe
	hdrJump         = 0x200
	hdrMagic        = 0x202
	hdrVersion      = 0x206
	hdrLoader       = 0x210
	hdrLoadFlags    = 0x211
	hdrRamdisk      = 0x218
	hdrRamdiskSize  = 0x21c
	hdrCmdline      = 0x228
	hdrInitrdMax    = 0x22c
	hdrAlignment    = 0x230
	hdrRelocatable  = 0x234
	hdrXLoadFlags   = 0x236
	hdrCmdlineSize  = 0x238
	hdrPrefAddress  = 0x258
	hdrInitSize     = 0x260
	hdrEnd          = 0x290 // e820 table follows in boot_params
	hdrMinEnd       = 0x264 // through init_size: version 2.10
	sectorSize      = 512
	entry64         = 0x200 // of the protected-mode part
	xloadKernel64   = 1 << 0
	minBootVersion  = 0x20c // first with xloadflags
	bootFlagMagic   = 0xaa55
	loadFlagHigh    = 1 << 0
	maxSetupSectors = 64
)

// ParseBzImage looks at a bzImage for the 64-bit entry (boot protocol 2.12). It is loaded at its preferred
// address, so it need not move itself.
func ParseBzImage(r io.ReaderAt, size int64) (*Image, error) {
	var h [hdrEnd]byte
	if err := readAt(r, size, h[:], 0, "setup header"); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	version := le.Uint16(h[hdrVersion:])
	switch {
	case le.Uint16(h[hdrBootFlag:]) != bootFlagMagic || string(h[hdrMagic:hdrMagic+4]) != "HdrS":
		return nil, fmt.Errorf("%w: neither ELF nor bzImage", ErrImage)
	case version < minBootVersion:
		return nil, fmt.Errorf("%w: boot protocol %#x, want %#x or later", ErrImage, version, minBootVersion)
	case le.Uint16(h[hdrXLoadFlags:])&xloadKernel64 == 0:
		return nil, fmt.Errorf("%w: no 64-bit entry point", ErrImage)
	}
	sectors := int64(h[hdrSetupSects])
	if sectors == 0 {
		sectors = 4 // boot.rst: for backwards compatibility
	}
	off := (sectors + 1) * sectorSize
	if sectors > maxSetupSectors || off+entry64 >= size {
		return nil, fmt.Errorf("%w: %d setup sectors in %d bytes", ErrImage, sectors, size)
	}
	s := Segment{
		GPA:      guestmem.GPA(le.Uint64(h[hdrPrefAddress:])),
		Offset:   off,
		FileSize: uint64(size - off),
	}
	// The kernel unpacks itself in place and needs init_size bytes for it.
	s.MemSize = max(s.FileSize, uint64(le.Uint32(h[hdrInitSize:])))
	if err := s.check(size); err != nil {
		return nil, err
	}
	im := &Image{
		Segments:  []Segment{s},
		Entry:     s.GPA + entry64,
		InitrdMax: min(guestmem.GPA(le.Uint32(h[hdrInitrdMax:]))+1, MMIOGapStart),
		Header:    h[hdrSetupSects:headerEnd(h[:])],
	}
	return im, nil
}

// headerEnd is where the setup header ends: the jump at 0x200 leads past it.
func headerEnd(h []byte) int {
	return max(min(hdrMagic+int(h[hdrJump+1]), hdrEnd), hdrMinEnd)
}
