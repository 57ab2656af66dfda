package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Bounds of a tar stream, whichever side made it (AG-04).
const (
	maxEntries   = 1 << 20
	maxTarBytes  = 64 << 30 // of file content
	maxEntryName = 4096
)

// ErrArchive is matched by every error about a tar stream that is refused.
var ErrArchive = errors.New("refused archive entry")

// Owner is who gets what Unpack makes; negative ids leave it to the caller of Unpack.
type Owner struct{ UID, GID int }

// Pack writes the file or the tree at src to w as a tar stream whose first entry is src's own name. Links are
// kept as links; sockets, FIFOs and devices are left out.
func Pack(w io.Writer, src string) error {
	src = filepath.Clean(src)
	if _, err := os.Lstat(src); err != nil {
		return err
	}
	t := tar.NewWriter(w)
	top := filepath.Base(src)
	err := filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return packEntry(t, p, path.Join(top, filepath.ToSlash(rel)))
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func packEntry(t *tar.Writer, p, name string) error {
	st, err := os.Lstat(p)
	if err != nil {
		return err
	}
	mode := st.Mode()
	if !mode.IsRegular() && !mode.IsDir() && mode&fs.ModeSymlink == 0 {
		return nil
	}
	h := &tar.Header{Name: name, Mode: int64(mode.Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX}
	switch {
	case mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, st.Size()
	default:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(p); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	// The file may grow or shrink meanwhile: exactly the announced bytes go out, or the stream fails.
	if _, err := io.CopyN(t, f, h.Size); err != nil {
		return fmt.Errorf("pack %s: %w", p, err)
	}
	return nil
}

// Unpack reads a tar stream made by Pack and puts its tree at dest: into it, under its own name, when dest is
// a directory or ends with a slash; as dest otherwise, whose parent must exist. Nothing is written outside:
// names with "..", links that lead out, devices and streams beyond the bounds are refused with ErrArchive.
func Unpack(r io.Reader, dest string, owner Owner) error {
	into := strings.HasSuffix(dest, "/")
	dest = filepath.Clean(dest)
	st, err := os.Stat(dest)
	isDir := err == nil && st.IsDir()
	if into && !isDir {
		return &os.PathError{Op: "unpack into", Path: dest, Err: fs.ErrNotExist}
	}
	parent, rename := filepath.Dir(dest), filepath.Base(dest)
	if isDir {
		parent, rename = dest, ""
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, rename: rename, owner: owner}
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			if n == 0 {
				return fmt.Errorf("%w: the stream is empty", ErrArchive)
			}
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if n >= maxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrArchive, maxEntries)
		}
		if err := u.entry(h, t); err != nil {
			return err
		}
	}
}

// unpacker puts entries below a root that no name and no link leads out of.
type unpacker struct {
	root   *os.Root
	rename string // replaces the top name; empty keeps it
	top    string // the only top name there may be
	owner  Owner
	bytes  int64
	dirs   []dirTime
}

type dirTime struct {
	name string
	mode fs.FileMode
	at   time.Time
}

// place turns an entry's name into one below root.
func (u *unpacker) place(name string) (string, error) {
	clean := path.Clean(name)
	if len(name) > maxEntryName || !filepath.IsLocal(clean) || clean == "." || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: name %.200q", ErrArchive, name)
	}
	top, rest, _ := strings.Cut(clean, "/")
	if u.top == "" {
		u.top = top
	}
	if top != u.top {
		return "", fmt.Errorf("%w: name %.200q is outside %.200q", ErrArchive, name, u.top)
	}
	if u.rename != "" {
		top = u.rename
	}
	return path.Join(top, rest), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := u.place(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.dirs = append(u.dirs, dirTime{name, mode, h.ModTime})
		return u.own(name)
	case tar.TypeReg:
		return u.file(name, mode, h, content)
	case tar.TypeSymlink:
		if !localLink(name, h.Linkname) {
			return fmt.Errorf("%w: %.200q links to %.200q, outside the copied tree", ErrArchive, h.Name, h.Linkname)
		}
		_ = u.root.Remove(name) // a link is replaced, never followed
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name)
	}
	return fmt.Errorf("%w: %.200q is of type %q", ErrArchive, h.Name, h.Typeflag)
}

// localLink reports whether a link at name stays in the tree it is part of.
func localLink(name, target string) bool {
	return target != "" && !path.IsAbs(target) && filepath.IsLocal(path.Join(path.Dir(name), target))
}

func (u *unpacker) file(name string, mode fs.FileMode, h *tar.Header, content io.Reader) error {
	u.bytes += h.Size
	if h.Size < 0 || u.bytes > maxTarBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrArchive, int64(maxTarBytes))
	}
	if st, err := u.root.Lstat(name); err == nil && !st.Mode().IsRegular() && !st.IsDir() {
		if err := u.root.Remove(name); err != nil { // never write through a link or into a FIFO
			return err
		}
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, content, h.Size)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return fmt.Errorf("unpack %.200q: %w", h.Name, err)
	}
	if err := u.own(name); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

func (u *unpacker) own(name string) error {
	if u.owner.UID < 0 {
		return nil
	}
	return u.root.Lchown(name, u.owner.UID, u.owner.GID)
}

// finish gives directories their modes and times, deepest last made first: before, they had to be writable.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := u.root.Chtimes(d.name, d.at, d.at); err != nil {
			return err
		}
	}
	return nil
}
