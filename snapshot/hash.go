package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"spore/internal/sparse"
)

// leafSize is what one leaf of a hash tree covers, in bytes.
const leafSize = 64 << 10

// Part is one file of a snapshot as the manifest knows it.
type Part struct {
	Size int64  `json:"size"` // bytes, holes counted
	Root string `json:"root"` // of its hash tree, in hexadecimal
}

// The hash tree of a file has a leaf for each 64 KiB that hold anything but zeros, and one node above them all, which names
// each leaf's place: a hole and zeros are the same, whatever the file system makes of them. Leaf and root are told apart by
// their first byte.
const (
	leafMark = 0
	rootMark = 1
)

// hashFile computes the root of a file's hash tree.
func hashFile(ctx context.Context, f *os.File) (Part, error) {
	st, err := f.Stat()
	if err != nil {
		return Part{}, err
	}
	size := st.Size()
	root := sha256.New()
	root.Write(binary.LittleEndian.AppendUint64([]byte{rootMark}, uint64(size)))
	buf := make([]byte, leafSize)
	done := int64(0) // up to where leaves are in
	for e, err := range sparse.Extents(f, size) {
		if err != nil {
			return Part{}, err
		}
		for at := max(done, e.Offset/leafSize*leafSize); at < e.Offset+e.Length; at += leafSize {
			if ctx.Err() != nil {
				return Part{}, context.Cause(ctx)
			}
			b := buf[:min(leafSize, size-at)]
			if _, err := f.ReadAt(b, at); err != nil && err != io.EOF {
				return Part{}, err
			}
			if !allZero(b) {
				leaf := sha256.New()
				leaf.Write([]byte{leafMark})
				leaf.Write(b)
				root.Write(leaf.Sum(binary.LittleEndian.AppendUint64(nil, uint64(at))))
			}
			done = at + leafSize
		}
	}
	return Part{Size: size, Root: hex.EncodeToString(root.Sum(nil))}, nil
}

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// check compares a file with what the manifest says.
func (p Part) check(ctx context.Context, name string, f *os.File) error {
	got, err := hashFile(ctx, f)
	switch {
	case err != nil:
		return fmt.Errorf("verify %s: %w", name, err)
	case got.Size != p.Size:
		return fmt.Errorf("%w: %s has %d bytes, the manifest says %d", ErrDamaged, name, got.Size, p.Size)
	case got.Root != p.Root:
		return fmt.Errorf("%w: the content of %s is not what was signed", ErrDamaged, name)
	}
	return nil
}
