package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// On-disk sizes and values, Linux fs/erofs/erofs_fs.h.
const (
	superOffset    = 1024
	superSize      = 128
	superMagic     = 0xE0F5E1E2
	featureChksum  = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	featureMtime   = 0x2 // EROFS_FEATURE_COMPAT_MTIME
	slotSize       = 32  // an inode number counts slots
	inodeSize      = 64  // extended inode
	layoutPlain    = 0   // EROFS_INODE_FLAT_PLAIN
	layoutInline   = 2   // EROFS_INODE_FLAT_INLINE
	direntSize     = 12
	firstInode     = 2 * slotSize // keeps inode number 0, which readers take for a deleted entry, unused
	inlineTailMax  = 2048         // of a directory
	superImageSize = BlockSize
)

// placed is an inode with what Finish decided about it.
type placed struct {
	inode *Inode
	pos   int64 // from the start of the inode area
	tail  []byte
}

// Finish writes the tree below root, a directory, and the super block, and returns the bytes of the image,
// a multiple of align (a power of two, at least BlockSize; the file ends in a hole up to it). The writer must
// not be used afterwards. Inodes of the tree are modified: attributes are sorted, Block may move.
func (w *Writer) Finish(root *Inode, align int64) (size int64, err error) {
	if root == nil || !root.IsDir() {
		return 0, fmt.Errorf("root is no directory: %w", ErrInvalid)
	}
	order, live, err := number(root)
	if err != nil {
		return 0, err
	}
	if err := w.compact(live); err != nil {
		return 0, err
	}
	if err := w.file.Truncate(w.next * BlockSize); err != nil {
		return 0, err
	}
	dirStart := w.next
	dirBlocks := int64(0)
	for i := range order {
		if d := order[i].inode.dir; d != nil {
			d.block = dirStart + dirBlocks
			dirBlocks += d.fullBlocks()
		}
	}
	metaStart := dirStart + dirBlocks
	metaSize := place(order)
	end := metaStart*BlockSize + roundUp(metaSize, BlockSize)
	if end/BlockSize > 1<<32-1 {
		return 0, fmt.Errorf("image of %d bytes: %w", end, ErrInvalid)
	}
	if err := w.writeDirs(order, root, dirStart); err != nil {
		return 0, err
	}
	if err := w.writeInodes(order, root, metaStart); err != nil {
		return 0, err
	}
	if err := w.writeSuper(order, metaStart, end/BlockSize); err != nil {
		return 0, err
	}
	size = roundUp(end, align)
	return size, w.file.Truncate(size)
}

// number walks the tree breadth-first by directory, in name order, checks it, counts links and lists the
// contents in blocks by position.
func number(root *Inode) (order []placed, live []extent, err error) {
	visit := func(n *Inode) error {
		n.nlink++
		if n.nlink > 1 {
			if n.IsDir() {
				return fmt.Errorf("directory with two names: %w", ErrInvalid)
			}
			return nil
		}
		if err := n.check(); err != nil {
			return err
		}
		if n.Type() == TypeRegular && n.Size > int64(len(n.Inline)) {
			live = append(live, extent{n, (n.Size + BlockSize - 1) / BlockSize})
		}
		order = append(order, placed{inode: n})
		return nil
	}
	if err := visit(root); err != nil {
		return nil, nil, err
	}
	for i := 0; i < len(order); i++ {
		n := order[i].inode
		if !n.IsDir() {
			continue
		}
		n.nlink++ // its own "."
		n.dir, err = newDirLayout(n.Children)
		if err != nil {
			return nil, nil, err
		}
		n.Size = n.dir.size
		for _, name := range n.dir.names {
			child := n.Children[name]
			if name == "." || name == ".." {
				continue
			}
			if err := visit(child); err != nil {
				return nil, nil, fmt.Errorf("%q: %w", name, err)
			}
			if child.IsDir() {
				n.nlink++ // the child's ".."
			}
		}
	}
	slices.SortFunc(live, func(a, b extent) int { return int(int64(a.inode.Block) - int64(b.inode.Block)) })
	return order, live, nil
}

func (n *Inode) check() error {
	n.dir = nil
	switch n.Type() {
	case TypeDir:
	case TypeFIFO:
		n.Size = 0
	case TypeSymlink:
		if len(n.Inline) == 0 || len(n.Inline) > TargetMax {
			return fmt.Errorf("link target of %d bytes: %w", len(n.Inline), ErrInvalid)
		}
		n.Size = int64(len(n.Inline))
	case TypeRegular:
		if len(n.Inline) > InlineMax || n.Size < 0 || (n.Inline != nil && n.Size != int64(len(n.Inline))) {
			return fmt.Errorf("content of %d bytes: %w", n.Size, ErrInvalid)
		}
	default:
		return fmt.Errorf("file type %#o: %w", n.Type(), ErrInvalid)
	}
	return n.checkXattrs()
}

// place gives every inode its position: no inode crosses a block, nor does what is inline behind it.
func place(order []placed) (size int64) {
	pos := int64(firstInode)
	for i := range order {
		n := order[i].inode
		tail := n.Inline
		if n.dir != nil {
			tail = n.dir.tail()
		}
		xattrs := int64(n.xattrSize())
		if pos%BlockSize+inodeSize > BlockSize {
			pos = roundUp(pos, BlockSize)
		}
		if len(tail) > 0 {
			if off := (pos + inodeSize + xattrs) % BlockSize; off+int64(len(tail)) > BlockSize {
				pos = roundUp(pos+BlockSize-off, slotSize)
			}
			if pos%BlockSize+inodeSize > BlockSize { // only with attributes of about a block or more
				pos = roundUp(pos, BlockSize)
				pos = settle(pos, xattrs, int64(len(tail)))
			}
		}
		order[i].pos, order[i].tail = pos, tail
		n.nid = uint64(pos / slotSize)
		pos = roundUp(pos+inodeSize+xattrs+int64(len(tail)), slotSize)
	}
	return pos
}

// settle steps through the slots of a block until neither the inode nor its tail crosses a block.
func settle(pos, xattrs, tail int64) int64 {
	for ; ; pos += slotSize {
		if pos%BlockSize+inodeSize <= BlockSize && (pos+inodeSize+xattrs)%BlockSize+tail <= BlockSize {
			return pos
		}
	}
}

// writeDirs writes the whole blocks of all directories, which lie back to back from block start on.
func (w *Writer) writeDirs(order []placed, root *Inode, start int64) error {
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.file, start*BlockSize), writeBuffer)
	parents := map[*Inode]*Inode{root: root}
	for i := range order {
		n := order[i].inode
		if n.dir == nil {
			continue
		}
		for _, c := range n.Children {
			if c.IsDir() {
				parents[c] = n
			}
		}
		if err := n.dir.encode(out, n, parents[n]); err != nil {
			return err
		}
		delete(parents, n)
	}
	return out.Flush()
}

func (w *Writer) writeInodes(order []placed, root *Inode, metaStart int64) error {
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.file, metaStart*BlockSize), writeBuffer)
	pos := int64(0)
	for i := range order {
		p := &order[i]
		n := p.inode
		if n.dir != nil {
			p.tail = n.dir.encodedTail
		}
		if _, err := out.Write(zeroBlock[:p.pos-pos]); err != nil {
			return err
		}
		raw := n.encode(uint32(i+1), p.tail)
		if _, err := out.Write(raw); err != nil {
			return err
		}
		pos = p.pos + int64(len(raw))
	}
	return out.Flush()
}

// encode is the inode, its attributes and its inline content.
func (n *Inode) encode(ino uint32, tail []byte) []byte {
	xattrs := n.xattrSize()
	b := make([]byte, inodeSize, inodeSize+xattrs+len(tail))
	layout := uint16(layoutPlain)
	if len(tail) > 0 {
		layout = layoutInline
	}
	block := n.Block
	switch {
	case n.dir != nil:
		block = uint32(n.dir.block)
	case n.Type() != TypeRegular || n.Size == int64(len(n.Inline)):
		block = 0
	}
	le := binary.LittleEndian
	le.PutUint16(b[0:], layout<<1|1) // bit 0: extended inode
	if xattrs > 0 {
		le.PutUint16(b[2:], uint16((xattrs-xattrHeaderSize)/4+1))
	}
	le.PutUint16(b[4:], n.Mode)
	le.PutUint64(b[8:], uint64(n.Size))
	le.PutUint32(b[16:], block)
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime))
	le.PutUint32(b[40:], n.MtimeNsec)
	le.PutUint32(b[44:], n.nlink)
	if xattrs > 0 {
		b = append(b, make([]byte, xattrHeaderSize)...)
		for _, x := range n.Xattrs {
			index, rest, _ := xattrPrefix(x.Name)
			b = append(b, byte(len(rest)), index)
			b = le.AppendUint16(b, uint16(len(x.Value)))
			b = append(b, rest...)
			b = append(b, x.Value...)
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
		}
	}
	return append(b, tail...)
}

func (w *Writer) writeSuper(order []placed, metaStart, blocks int64) error {
	b := make([]byte, superImageSize)
	s := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], featureChksum|featureMtime)
	s[12] = 12 // log2 of the block size
	le.PutUint16(s[14:], uint16(order[0].inode.nid))
	le.PutUint64(s[16:], uint64(len(order)))
	le.PutUint32(s[36:], uint32(blocks))
	le.PutUint32(s[40:], uint32(metaStart))
	copy(s[64:80], "spore")
	// The kernel's crc32c does not invert its result.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	_, err := w.file.WriteAt(b, 0)
	return err
}
