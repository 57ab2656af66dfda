package erofs

import (
	"errors"
	"fmt"
	"slices"
)

// File types, as in the upper bits of Inode.Mode (stat(2) S_IF*). The types not named here, devices and
// sockets, cannot be written.
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeDir     = 0o040000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
)

// Limits of the format and of this writer.
const (
	BlockSize = 4096
	// InlineMax is the longest content in bytes that is kept beside its inode instead of in a block of its own.
	InlineMax = 1024
	// NameMax is the longest file name, in bytes.
	NameMax = 255
	// TargetMax is the longest symbolic link target, in bytes (PATH_MAX without its NUL).
	TargetMax = 4095
	// XattrMax bounds the extended attributes of one inode: names and values together, in bytes.
	XattrMax = 64 << 10
)

// Inode is one file, directory, symbolic link or FIFO. The same *Inode under several names is a hard link;
// a directory may appear only once. The zero value is not valid: Mode needs a type.
type Inode struct {
	Mode      uint16 // TypeX | permission bits, set-uid, set-gid and sticky included
	UID, GID  uint32
	Mtime     int64  // seconds since 1970; may be negative
	MtimeNsec uint32 // below 1e9
	Size      int64  // bytes, of a regular file; Finish sets it for the other types
	Block     uint32 // first block of a regular file whose content is in blocks, as Append returned it
	Inline    []byte // content of a regular file of at most InlineMax bytes, or the target of a symbolic link
	Xattrs    []Xattr
	Children  map[string]*Inode // of a directory
	Mark      uint32            // free for the caller; not written

	nlink uint32
	nid   uint64
	dir   *dirLayout
}

// Xattr is an extended attribute by its full name, for example "security.capability".
type Xattr struct {
	Name  string
	Value string
}

// Type is the file type bits of the mode.
func (n *Inode) Type() uint16 { return n.Mode & TypeMask }

// IsDir reports whether the inode is a directory.
func (n *Inode) IsDir() bool { return n.Type() == TypeDir }

// ErrInvalid is returned for a tree that cannot be written: a bad name, type, size or attribute.
var ErrInvalid = errors.New("not representable in EROFS")

// Linux fs/erofs/xattr.h: the prefixes an attribute name is stored as. The order matters: the exact names first.
var xattrPrefixes = []struct {
	index  uint8
	prefix string
}{
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{1, "user."},
	{4, "trusted."},
	{6, "security."},
}

func xattrPrefix(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if len(name) < len(p.prefix) || name[:len(p.prefix)] != p.prefix {
			continue
		}
		rest = name[len(p.prefix):]
		exact := p.prefix[len(p.prefix)-1] != '.'
		if exact == (rest == "") {
			return p.index, rest, len(rest) <= 255
		}
	}
	return 0, "", false
}

// XattrSupported reports whether the format can hold an attribute of this name.
func XattrSupported(name string) bool {
	_, _, ok := xattrPrefix(name)
	return ok
}

const (
	xattrHeaderSize = 12
	xattrEntrySize  = 4
)

// xattrSize is the number of bytes of the attribute area behind the inode, 0 without attributes.
func (n *Inode) xattrSize() int {
	if len(n.Xattrs) == 0 {
		return 0
	}
	size := xattrHeaderSize
	for _, x := range n.Xattrs {
		_, rest, _ := xattrPrefix(x.Name)
		size += roundUp(xattrEntrySize+len(rest)+len(x.Value), 4)
	}
	return size
}

// checkXattrs sorts the attributes and refuses what the format or XattrMax does not allow.
func (n *Inode) checkXattrs() error {
	slices.SortFunc(n.Xattrs, func(a, b Xattr) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	total := 0
	for i, x := range n.Xattrs {
		if !XattrSupported(x.Name) {
			return fmt.Errorf("attribute %q: %w", x.Name, ErrInvalid)
		}
		if i > 0 && n.Xattrs[i-1].Name == x.Name {
			return fmt.Errorf("attribute %q appears twice: %w", x.Name, ErrInvalid)
		}
		if total += len(x.Name) + len(x.Value); total > XattrMax || len(x.Value) > 0xffff {
			return fmt.Errorf("attributes of more than %d bytes: %w", XattrMax, ErrInvalid)
		}
	}
	return nil
}

func roundUp[T int | int64 | uint64](n, to T) T { return (n + to - 1) / to * to }
