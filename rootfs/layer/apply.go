package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"spore/rootfs/erofs"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
	// inlineBudget bounds the small file contents kept in memory for the inode area; past it they get blocks.
	inlineBudget = 256 << 20
)

// Apply reads one uncompressed layer to its end, bytes behind the archive included, and puts it over the
// layers applied before. Entries that are wrong end it with an *EntryError, excess with a *LimitError; the tree
// must not be used then. The context is looked at between entries and between blocks of contents.
func (t *Tree) Apply(ctx context.Context, r io.Reader) error {
	t.layer++
	clear(t.linked)
	in := &meter{ctx: ctx, r: r, tree: t}
	archive := tar.NewReader(in)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return headerError(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.add(h, t.content(ctx, archive)); err != nil {
			return entryError(h.Name, err)
		}
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

func headerError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read layer: %w: %w", ErrHeader, err)
	}
	return fmt.Errorf("read layer: %w", err)
}

func entryError(name string, err error) error {
	var limit *LimitError
	if errors.As(err, &limit) {
		return err
	}
	return &EntryError{name[:min(len(name), 256)], err}
}

// meter counts unpacked bytes against Limits.Size.
type meter struct {
	ctx  context.Context
	r    io.Reader
	tree *Tree
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	if limitErr := m.tree.count(int64(n)); limitErr != nil {
		return 0, limitErr
	}
	return n, err
}

// patient is a content while it is copied. It ends when the context does, and when a sparse file is far more than
// the archive holds of it: the holes, which the archive's reader makes up, are not metered.
type patient struct {
	ctx  context.Context
	r    io.Reader
	tree *Tree
	from int64 // tree.stream at the beginning
	n    int64
}

func (t *Tree) content(ctx context.Context, r io.Reader) *patient {
	return &patient{ctx: ctx, r: r, tree: t, from: t.stream}
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.r.Read(b)
	p.n += int64(n)
	if p.n > RatioFrom && p.n/p.tree.limits.Ratio > p.tree.stream-p.from {
		return 0, &LimitError{"ratio", p.tree.limits.Ratio}
	}
	return n, err
}

func (t *Tree) count(n int64) error {
	if t.stream += n; t.stream > t.limits.Size {
		return &LimitError{"size", t.limits.Size}
	}
	return nil
}

// add puts one entry of a layer into the tree.
func (t *Tree) add(h *tar.Header, content io.Reader) error {
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) > 0 && strings.HasPrefix(parts[len(parts)-1], whiteoutPrefix) {
		return t.addWhiteout(parts)
	}
	return t.insert(parts, h, content)
}

// insert puts one file into the tree, whatever its name.
func (t *Tree) insert(parts []string, h *tar.Header, content io.Reader) error {
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return ErrPath
		}
		return t.describe(t.root, h)
	}
	node, err := t.newInode(h, content)
	if err != nil || node == nil {
		return err
	}
	dir, err := t.parent(parts, true)
	if err != nil {
		return err
	}
	base := parts[len(parts)-1]
	old := dir.Children[base]
	if node.IsDir() && old != nil && old.IsDir() {
		return t.describe(old, h)
	}
	if h.Typeflag == tar.TypeLink && node.Mark < t.layer {
		t.linked[name{dir, base}] = struct{}{}
	}
	dir.Children[base] = node
	return nil
}

func (t *Tree) addWhiteout(parts []string) error {
	base := parts[len(parts)-1]
	name := base[len(whiteoutPrefix):]
	if base != opaqueMarker && (strings.HasPrefix(base, aufsPrefix) || name == "") {
		return nil // aufs keeps its own files under such names
	}
	if name == "." || name == ".." {
		return ErrPath
	}
	dir, err := t.parent(parts, false)
	if errors.Is(err, ErrParent) {
		return nil // nothing there to hide
	}
	if err != nil {
		return err
	}
	if base == opaqueMarker {
		_, err = t.prune(dir)
		return err
	}
	return t.whiteout(dir, name)
}

// newInode makes the inode of an entry; nil if the entry is left out.
func (t *Tree) newInode(h *tar.Header, content io.Reader) (*erofs.Inode, error) {
	if h.Typeflag == tar.TypeLink {
		return t.linkTarget(h.Linkname)
	}
	n := &erofs.Inode{}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		n.Mode = erofs.TypeRegular
	case tar.TypeDir:
		n.Mode = erofs.TypeDir
		n.Children = map[string]*erofs.Inode{}
	case tar.TypeSymlink:
		n.Mode = erofs.TypeSymlink
		if l := len(h.Linkname); l == 0 || l > erofs.TargetMax || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, ErrLink
		}
		n.Inline = []byte(h.Linkname)
	case tar.TypeFifo:
		n.Mode = erofs.TypeFIFO
	case tar.TypeChar, tar.TypeBlock:
		if parts, _ := split(h.Name); parts[0] != "dev" { // those of /dev are the guest kernel's business
			t.warn(fmt.Sprintf("left out device node %.256q", h.Name))
		}
		return nil, nil
	default:
		t.warn(fmt.Sprintf("left out %.256q of unknown type %q", h.Name, h.Typeflag))
		return nil, nil
	}
	if err := t.charge(1, len(h.Name)+len(n.Inline)); err != nil {
		return nil, err
	}
	if err := t.describe(n, h); err != nil {
		return nil, err
	}
	if n.Type() == erofs.TypeRegular {
		return n, t.store(n, h, content)
	}
	return n, nil
}

// linkTarget finds what a hard link names. The link counts as an entry for its name.
func (t *Tree) linkTarget(name string) (*erofs.Inode, error) {
	parts, err := split(name)
	if err != nil {
		return nil, err
	}
	n, err := t.lookup(parts)
	if errors.Is(err, ErrParent) || err == nil && (n == nil || n.IsDir()) {
		return nil, ErrLink
	}
	if err != nil {
		return nil, err
	}
	return n, t.charge(1, len(name))
}

// describe sets what the header says about the inode itself.
func (t *Tree) describe(n *erofs.Inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 1<<32-2 || int64(h.Gid) > 1<<32-2 {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, ErrHeader)
	}
	n.Mode = n.Type() | uint16(h.Mode&0o7777)
	n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	n.Mtime, n.MtimeNsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	n.Mark = t.layer
	n.Xattrs = nil
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keepXattr(name) {
			continue
		}
		if total += len(name) + len(value); total > erofs.XattrMax || len(value) > 0xffff {
			return fmt.Errorf("extended attributes of more than %d bytes: %w", erofs.XattrMax, ErrHeader)
		}
		n.Xattrs = append(n.Xattrs, erofs.Xattr{Name: name, Value: value})
	}
	return t.charge(0, total)
}

// keepXattr leaves out what only the host's overlayfs, or the security module of some other system, would read.
func keepXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."), name == "security.capability",
		name == "system.posix_acl_access", name == "system.posix_acl_default":
		return erofs.XattrSupported(name)
	}
	return false
}

// store copies the content of a regular file.
func (t *Tree) store(n *erofs.Inode, h *tar.Header, content io.Reader) error {
	n.Size = h.Size
	if n.Size < 0 || n.Size > t.limits.Size {
		return &LimitError{"size", t.limits.Size}
	}
	if n.Size == 0 {
		return nil
	}
	if n.Size <= erofs.InlineMax && t.inline+n.Size <= inlineBudget {
		t.inline += n.Size
		n.Inline = make([]byte, n.Size)
		if _, err := io.ReadFull(content, n.Inline); err != nil {
			return truncated(err)
		}
		return t.charge(0, len(n.Inline))
	}
	// What is written is limited apart from what is read: a sparse file's holes are only written.
	if t.out.Written()+n.Size > t.limits.Size {
		return &LimitError{"size", t.limits.Size}
	}
	var err error
	n.Block, err = t.out.Append(content, n.Size)
	return truncated(err)
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("content ends early: %w: %w", ErrHeader, io.ErrUnexpectedEOF)
	}
	return err
}
