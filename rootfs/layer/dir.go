package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileID tells hard links of the host apart.
type fileID struct{ dev, ino uint64 }

// dirWalk is one ApplyDir.
type dirWalk struct {
	ctx   context.Context
	tree  *Tree
	root  *os.Root
	links map[fileID]string
}

// ApplyDir puts a directory of the host over the layers applied before, in name order. Symbolic links are
// copied, never followed; only regular files are opened. Device nodes and sockets are left out. A file that
// changes its size while it is read is an error. Names mean themselves: there are no whiteouts.
func (t *Tree) ApplyDir(ctx context.Context, root *os.Root) error {
	t.layer++
	clear(t.linked)
	w := &dirWalk{ctx: ctx, tree: t, root: root, links: map[fileID]string{}}
	return w.enter(".", 0)
}

// enter adds the directory called path and everything below it.
func (w *dirWalk) enter(path string, depth int) error {
	if depth > depthMax {
		return entryError(path, ErrPath)
	}
	f, err := w.root.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	names, err := w.list(f, path)
	f.Close()
	if err != nil {
		return err
	}
	for _, base := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		child := base
		if path != "." {
			child = path + "/" + base
		}
		info, err := w.root.Lstat(child)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = w.enter(child, depth+1)
		} else {
			err = w.addFile(child, info)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list adds the directory itself and returns its entries, sorted.
func (w *dirWalk) list(f *os.File, path string) ([]string, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h := w.header(path, info)
	h.Typeflag = tar.TypeDir
	if err := readXattrs(f, h); err != nil {
		return nil, fmt.Errorf("read attributes of %s: %w", path, err)
	}
	if err := w.put(h, nil); err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (w *dirWalk) addFile(path string, info fs.FileInfo) error {
	h := w.header(path, info)
	switch info.Mode().Type() {
	case 0:
		return w.addRegular(h, info)
	case fs.ModeSymlink:
		target, err := w.root.Readlink(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeSocket:
		w.tree.warn(fmt.Sprintf("left out socket %.256q", path))
		return nil
	default:
		h.Typeflag = tar.TypeChar
	}
	return w.put(h, nil)
}

func (w *dirWalk) addRegular(h *tar.Header, info fs.FileInfo) error {
	if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 {
		id := fileID{st.Dev, st.Ino}
		if first, ok := w.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return w.put(h, nil)
		}
		w.links[id] = h.Name
	}
	f, err := w.root.OpenFile(h.Name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(info, now) || now.Size() != info.Size() {
		return fmt.Errorf("read %s: file changed while it was read", h.Name)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := readXattrs(f, h); err != nil {
		return fmt.Errorf("read attributes of %s: %w", h.Name, err)
	}
	return w.put(h, f)
}

// put adds an entry as if it came out of an archive, but with a name that stands only for itself.
func (w *dirWalk) put(h *tar.Header, content io.Reader) error {
	metered := w.tree.content(w.ctx, content)
	if err := w.tree.count(512 + h.Size); err != nil {
		return err
	}
	parts, err := split(h.Name)
	if err == nil {
		err = w.tree.insert(parts, h, metered)
	}
	if err != nil {
		return entryError(h.Name, err)
	}
	return nil
}

func (w *dirWalk) header(path string, info fs.FileInfo) *tar.Header {
	st := info.Sys().(*syscall.Stat_t)
	return &tar.Header{Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: info.ModTime()}
}

// readXattrs puts the attributes of f into h as an archive has them.
func readXattrs(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	n, err := unix.Flistxattr(fd, nil)
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil
	}
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	if err == nil {
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, raw := range bytes.Split(bytes.TrimRight(list[:n], "\x00"), []byte{0}) {
		name := string(raw)
		if !keepXattr(name) {
			continue
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = strings.Clone(string(value[:n]))
	}
	return nil
}
