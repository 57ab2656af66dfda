package erofs

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

// dirLayout is a directory's entries, cut into blocks. Each block holds its entries' records first and then
// their names; names are sorted as bytes over the whole directory.
type dirLayout struct {
	names       []string // "." and ".." included
	blocks      []int    // index into names of each block's first entry
	size        int64    // bytes, the last block cut short
	block       int64    // where the whole blocks are written
	inline      bool     // the last block is kept beside the inode
	encodedTail []byte   // set by encode
}

func newDirLayout(children map[string]*Inode) (*dirLayout, error) {
	d := &dirLayout{names: make([]string, 0, len(children)+2)}
	d.names = append(d.names, ".", "..")
	for name, child := range children {
		if name == "" || name == "." || name == ".." || len(name) > NameMax || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("file name %.64q: %w", name, ErrInvalid)
		}
		if child == nil {
			return nil, fmt.Errorf("file name %.64q without an inode: %w", name, ErrInvalid)
		}
		d.names = append(d.names, name)
	}
	slices.Sort(d.names)
	used := BlockSize
	for i, name := range d.names {
		n := direntSize + len(name)
		if used+n > BlockSize {
			d.blocks = append(d.blocks, i)
			used = 0
		}
		used += n
	}
	d.size = int64(len(d.blocks)-1)*BlockSize + int64(used)
	d.inline = used <= inlineTailMax
	return d, nil
}

func (d *dirLayout) fullBlocks() int64 {
	if d.inline {
		return int64(len(d.blocks) - 1)
	}
	return int64(len(d.blocks))
}

// tail stands for the inline bytes until encode has made them; only its length counts.
func (d *dirLayout) tail() []byte {
	if !d.inline {
		return nil
	}
	return zeroBlock[:d.size-int64(len(d.blocks)-1)*BlockSize]
}

// encode writes the whole blocks to out and keeps the inline tail.
func (d *dirLayout) encode(out io.Writer, self, parent *Inode) error {
	for i, first := range d.blocks {
		last := len(d.names)
		if i+1 < len(d.blocks) {
			last = d.blocks[i+1]
		}
		b := d.encodeBlock(d.names[first:last], self, parent)
		if i+1 == len(d.blocks) && d.inline {
			d.encodedTail = b
			return nil
		}
		if _, err := out.Write(append(b, zeroBlock[:BlockSize-len(b)]...)); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirLayout) encodeBlock(names []string, self, parent *Inode) []byte {
	b := make([]byte, 0, BlockSize)
	off := len(names) * direntSize
	le := binary.LittleEndian
	for _, name := range names {
		n := self.Children[name]
		switch name {
		case ".":
			n = self
		case "..":
			n = parent
		}
		b = le.AppendUint64(b, n.nid)
		b = le.AppendUint16(b, uint16(off))
		b = append(b, direntType(n.Type()), 0)
		off += len(name)
	}
	for _, name := range names {
		b = append(b, name...)
	}
	return b
}

// direntType is the file type as directory entries hold it (Linux include/linux/fs_types.h FT_*).
func direntType(t uint16) byte {
	switch t {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeFIFO:
		return 5
	case TypeSymlink:
		return 7
	}
	panic(fmt.Sprintf("bug: file type %#o reached the directory writer", t))
}
