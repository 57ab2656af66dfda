// Package sparse copies files with holes and keeps the holes: a guest's memory and its disks are mostly nothing.
package sparse

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/contextio"
)

// Extent is a stretch of a file that is no hole, in bytes.
type Extent struct{ Offset, Length int64 }

// Extents goes through the data of the first size bytes of f. On a file system that knows nothing of holes it is one
// extent.
func Extents(f *os.File, size int64) iter.Seq2[Extent, error] { return extentsFrom(f, 0, size) }

// extentsFrom is Extents of the part of f that begins at off.
func extentsFrom(f *os.File, off, size int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for off := off; off < size; {
			start, err := f.Seek(off, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) { // only a hole is left
				return
			}
			var end int64
			if err == nil {
				end, err = f.Seek(start, unix.SEEK_HOLE)
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			end = min(end, size)
			if start >= end || !yield(Extent{start, end - start}, nil) {
				return
			}
			off = end
		}
	}
}

// Copy makes to, which is empty, the same as the first size bytes of from. Where the file system can, they share their
// blocks until one of them is written (FICLONE), and shared is true. Otherwise pages that are zero become holes: in a file of huge
// pages most of them never were anything.
func Copy(ctx context.Context, to, from *os.File, size int64) (shared bool, err error) {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return true, nil
	}
	if err := to.Truncate(size); err != nil {
		return false, err
	}
	buf := make([]byte, 64*pageSize)
	for e, err := range Extents(from, size) {
		if err == nil {
			err = copyNonzero(ctx, to, from, e, buf)
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// pageSize is the unit in bytes in which copyNonzero looks for zeros.
const pageSize = 4096

var zeroPage [pageSize]byte

// copyNonzero copies the pages of an extent that are not zero, neighbours in one go.
func copyNonzero(ctx context.Context, to, from *os.File, e Extent, buf []byte) error {
	for at, end := e.Offset, e.Offset+e.Length; at < end; at += int64(len(buf)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buf[:min(int64(len(buf)), end-at)]
		if _, err := from.ReadAt(b, at); err != nil {
			return err
		}
		for i := 0; i < len(b); {
			j := i
			for j < len(b) && !bytes.Equal(b[j:min(j+pageSize, len(b))], zeroPage[:min(pageSize, len(b)-j)]) {
				j = min(j+pageSize, len(b))
			}
			if _, err := to.WriteAt(b[i:j], at+int64(i)); err != nil {
				return err
			}
			i = j + pageSize // which is zero, or the end
		}
	}
	return nil
}

// Again makes a stretch of to, which is a copy of from of earlier, the same as from once more, holes included.
func Again(ctx context.Context, to, from *os.File, e Extent) error {
	err := unix.Fallocate(int(to.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Offset, e.Length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return copyRange(ctx, to, from, e) // the zeros too
	}
	if err != nil {
		return os.NewSyscallError("fallocate", err)
	}
	for part, err := range extentsFrom(from, e.Offset, e.Offset+e.Length) {
		if err != nil {
			return err
		}
		if err := copyRange(ctx, to, from, part); err != nil {
			return err
		}
	}
	return nil
}

func copyRange(ctx context.Context, to, from *os.File, e Extent) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, err := io.Copy(io.NewOffsetWriter(to, e.Offset), io.NewSectionReader(from, e.Offset, e.Length))
	return err
}

// A packed file is a list of extents: two little-endian words, offset and length, and then the data. It ends with an
// extent of length 0 at the size of the file. It is for file systems that do not know holes, and is read from front to back.
const (
	extentHeader = 16
	maxExtent    = 1 << 30 // bytes
)

// ErrDamaged is matched by the error of Unpack for what Pack did not write.
var ErrDamaged = errors.New("packed file is damaged")

// Pack writes the data of a file of size bytes as extents.
func Pack(ctx context.Context, to io.Writer, from *os.File, size int64) error {
	for e, err := range Extents(from, size) {
		if err != nil {
			return err
		}
		for ; e.Length > 0; e.Offset, e.Length = e.Offset+maxExtent, e.Length-maxExtent {
			n := min(e.Length, maxExtent)
			if err := writeHeader(to, e.Offset, n); err != nil {
				return err
			}
			if _, err := io.Copy(to, contextio.Reader(ctx, io.NewSectionReader(from, e.Offset, n))); err != nil {
				return err
			}
		}
	}
	return writeHeader(to, size, 0)
}

// PackedSize is how long what Pack writes will be, if f does not change.
func PackedSize(f *os.File, size int64) (int64, error) {
	n := int64(extentHeader)
	for e, err := range Extents(f, size) {
		if err != nil {
			return 0, err
		}
		n += e.Length + (e.Length+maxExtent-1)/maxExtent*extentHeader
	}
	return n, nil
}

func writeHeader(w io.Writer, off, n int64) error {
	_, err := w.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(off)), uint64(n)))
	return err
}

// Unpack writes the file of size bytes that packed, all of it, was made from. to must be empty. What is packed is untrusted:
// nothing is written beyond size.
func Unpack(ctx context.Context, to *os.File, packed io.Reader, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	in := contextio.Reader(ctx, bufio.NewReaderSize(packed, 256<<10))
	for {
		var head [extentHeader]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		off, n := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
		if n == 0 && off == uint64(size) {
			return nothing(in)
		}
		if n == 0 || n > maxExtent || off > uint64(size) || n > uint64(size)-off {
			return fmt.Errorf("%w: %d bytes at %d", ErrDamaged, n, off)
		}
		if _, err := io.CopyN(io.NewOffsetWriter(to, int64(off)), in, int64(n)); err != nil {
			return err
		}
	}
}

// nothing is an error unless r is at its end.
func nothing(r io.Reader) error {
	switch _, err := io.ReadFull(r, make([]byte, 1)); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("%w: something follows its end", ErrDamaged)
	default:
		return err
	}
}

// Whole reads all of f from its beginning, wherever its descriptor stands.
func Whole(f *os.File) io.Reader { return io.NewSectionReader(f, 0, math.MaxInt64) }
