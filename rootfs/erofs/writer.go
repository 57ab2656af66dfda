package erofs

import (
	"fmt"
	"io"
	"math"
	"os"
)

// Writer makes one image. It is not safe for concurrent use.
type Writer struct {
	file *os.File
	next int64 // first free block; block 0 holds the super block
	buf  []byte
}

// Sizes of buffers; copyBuffer is a multiple of BlockSize.
const (
	copyBuffer  = 1 << 20
	writeBuffer = 64 << 10
)

// NewWriter starts an image in file, which must be empty and open for reading and writing. The caller keeps
// the file and closes it.
func NewWriter(file *os.File) *Writer { return &Writer{file: file, next: 1} }

// Written is the number of bytes that contents take so far, those of replaced files included.
func (w *Writer) Written() int64 { return (w.next - 1) * BlockSize }

// Append copies exactly size bytes of r into the image and returns the block they begin at, for
// Inode.Block. Blocks of zeros become holes of the file. Fewer bytes than size are an io.ErrUnexpectedEOF.
// After an error the bytes are not part of the image and the writer can go on.
func (w *Writer) Append(r io.Reader, size int64) (block uint32, err error) {
	blocks := (size + BlockSize - 1) / BlockSize
	if size <= 0 || w.next+blocks > math.MaxUint32 {
		return 0, fmt.Errorf("content of %d bytes: %w", size, ErrInvalid)
	}
	w.grow(min(size, copyBuffer))
	start := w.next
	for off := int64(0); off < size; {
		n := min(size-off, int64(len(w.buf)))
		if _, err := io.ReadFull(r, w.buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, w.drop(start, err)
		}
		clear(w.buf[n:roundUp(n, BlockSize)])
		if err := w.writeSparse(start*BlockSize+off, w.buf[:roundUp(n, BlockSize)]); err != nil {
			return 0, w.drop(start, err)
		}
		off += n
	}
	w.next = start + blocks
	return uint32(start), nil
}

// grow makes room for n bytes in the buffer, in whole blocks.
func (w *Writer) grow(n int64) {
	if n = roundUp(n, BlockSize); int64(len(w.buf)) < n {
		w.buf = make([]byte, n)
	}
}

// drop forgets a partly written content, so that what follows does not find its bytes where it leaves a hole.
func (w *Writer) drop(start int64, cause error) error {
	if err := w.file.Truncate(start * BlockSize); err != nil {
		return err
	}
	return cause
}

// writeSparse writes the runs of blocks that are not all zero.
func (w *Writer) writeSparse(off int64, p []byte) error {
	for i := 0; i < len(p); {
		if isZero(p[i : i+BlockSize]) {
			i += BlockSize
			continue
		}
		j := i + BlockSize
		for j < len(p) && !isZero(p[j:j+BlockSize]) {
			j += BlockSize
		}
		if _, err := w.file.WriteAt(p[i:j], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}

var zeroBlock [BlockSize]byte

func isZero(block []byte) bool { return string(block) == string(zeroBlock[:]) }

// extent is the blocks of one live content.
type extent struct {
	inode  *Inode
	blocks int64
}

// compact moves the contents of live, sorted by block, down over those that no inode refers to. Moving is
// always towards the start, so that reading a chunk before writing it is enough.
func (w *Writer) compact(live []extent) error {
	to := int64(1)
	for _, e := range live {
		from := int64(e.inode.Block)
		if from < to || from+e.blocks > w.next {
			return fmt.Errorf("content at block %d: overlapping or out of range: %w", from, ErrInvalid)
		}
		if from != to {
			if err := w.move(from*BlockSize, to*BlockSize, e.blocks*BlockSize); err != nil {
				return err
			}
			e.inode.Block = uint32(to)
		}
		to += e.blocks
	}
	w.next = to
	return nil
}

func (w *Writer) move(from, to, n int64) error {
	w.grow(min(n, copyBuffer))
	for n > 0 {
		p := w.buf[:min(n, int64(len(w.buf)))]
		if k, err := w.file.ReadAt(p, from); err != nil && err != io.EOF {
			return err
		} else if k < len(p) { // a hole at the end of the file
			clear(p[k:])
		}
		if _, err := w.file.WriteAt(p, to); err != nil {
			return err
		}
		from, to, n = from+int64(len(p)), to+int64(len(p)), n-int64(len(p))
	}
	return nil
}
