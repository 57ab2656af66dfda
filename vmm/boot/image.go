package boot

import (
	"errors"
	"fmt"
	"io"

	"spore/guestmem"
)

// Segment is one part of a kernel image: FileSize bytes at Offset of the file go to GPA, and the rest up to
// MemSize is zero.
type Segment struct {
	GPA      guestmem.GPA
	Offset   int64
	FileSize uint64
	MemSize  uint64
}

// Image is a kernel that has been looked at but not loaded.
type Image struct {
	Segments  []Segment
	Entry     guestmem.GPA // 64-bit entry point
	InitrdMax guestmem.GPA // the initramfs must end at or below
	Header    []byte       // bzImage: the setup header as found in the file, from offset 0x1f1; ELF: nil
}

// ErrImage is matched by every error about a kernel that cannot be booted.
var ErrImage = errors.New("invalid kernel image")

// maxSegments bounds the program headers that are looked at.
const maxSegments = 64

// maxImage bounds what a kernel may occupy in guest memory, in bytes.
const maxImage = 1 << 30

// Parse recognises an ELF vmlinux or a bzImage of size bytes. It reads a bounded number of bytes and trusts none.
func Parse(r io.ReaderAt, size int64) (*Image, error) {
	var magic [4]byte
	if err := readAt(r, size, magic[:], 0, "magic number"); err != nil {
		return nil, err
	}
	if string(magic[:]) == "\x7fELF" {
		return ParseELF(r, size)
	}
	return ParseBzImage(r, size)
}

// Flat describes a bare-metal test guest: the whole file at 1 MiB, entered at its first byte. It reads nothing and has
// the shape of Parse.
func Flat(_ io.ReaderAt, size int64) (*Image, error) {
	if size <= 0 || size > maxImage {
		return nil, fmt.Errorf("%w: %d bytes", ErrImage, size)
	}
	n := uint64(size)
	return &Image{Segments: []Segment{{GPA: HighMemory, FileSize: n, MemSize: n}}, Entry: HighMemory}, nil
}

// End is the first address after the image.
func (im *Image) End() guestmem.GPA {
	var end guestmem.GPA
	for _, s := range im.Segments {
		end = max(end, s.GPA+guestmem.GPA(s.MemSize))
	}
	return end
}

// Load writes the segments into guest memory, which must be fresh: bytes past FileSize are taken to be zero.
func (im *Image) Load(mem *guestmem.Memory, r io.ReaderAt) error {
	for _, s := range im.Segments {
		dst, err := mem.Slice(s.GPA, s.MemSize)
		if err != nil {
			return fmt.Errorf("%w: segment %#x+%#x does not fit into guest memory: %w", ErrImage, s.GPA, s.MemSize, err)
		}
		if err := load(dst[:s.FileSize], r, s.Offset); err != nil {
			return fmt.Errorf("load kernel segment at %#x: %w", s.GPA, err)
		}
	}
	return nil
}

// LoadInitrd reads size bytes of r to the end of low memory, below limit and above the kernel, page aligned.
func LoadInitrd(mem *guestmem.Memory, r io.ReaderAt, size int64, low Range, im *Image) (Range, error) {
	top := min(low.End(), im.InitrdMax)
	if size <= 0 || uint64(size) > uint64(top) || top-guestmem.GPA(size) < im.End()+pageSize {
		return Range{}, fmt.Errorf("initramfs of %d bytes does not fit between kernel end %#x and %#x", size, im.End(), top)
	}
	at := Range{Base: (top - guestmem.GPA(size)) &^ (pageSize - 1), Size: uint64(size)}
	dst, err := mem.Slice(at.Base, at.Size)
	if err != nil {
		return Range{}, fmt.Errorf("place initramfs at %#x: %w", at.Base, err)
	}
	if err := load(dst, r, 0); err != nil {
		return Range{}, fmt.Errorf("load initramfs: %w", err)
	}
	return at, nil
}

const pageSize = 4096

// load fills dst from r at off: a whole segment that ends before dst does is an error.
func load(dst []byte, r io.ReaderAt, off int64) error {
	n, err := r.ReadAt(dst, off)
	if n == len(dst) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readAt fills p from offset off of an image of size bytes.
func readAt(r io.ReaderAt, size int64, p []byte, off int64, what string) error {
	if off < 0 || off > size || int64(len(p)) > size-off {
		return fmt.Errorf("%w: %s at %#x is past the end (%d bytes)", ErrImage, what, off, size)
	}
	if err := load(p, r, off); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}
