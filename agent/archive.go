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

	"golang.org/x/sys/unix"
)

// Pack writes the file or the tree at src to w as a tar stream whose first entry is src's own name. Links are
// kept as links; sockets, FIFOs and devices are left out.
func Pack(w io.Writer, src string) error {
	src, err := filepath.Abs(src)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(src); err != nil {
		return err
	}
	t := tar.NewWriter(w)
	top := filepath.Base(src)
	if top == "/" {
		top = "root"
	}
	err = filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != src {
			return nil // it went away meanwhile
		}
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
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mode := st.Mode()
	h := &tar.Header{Name: name, Mode: int64(mode.Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX}
	switch {
	case mode.IsRegular():
		return packFile(t, p, h)
	case mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(p); err != nil {
			return err
		}
	default:
		return nil
	}
	return t.WriteHeader(h)
}

func packFile(t *tar.Writer, p string, h *tar.Header) error {
	// What was a file may have become a link, or a FIFO that nobody writes to.
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	// The file may grow or shrink meanwhile: exactly the announced bytes go out, or the stream fails.
	if _, err := io.CopyN(t, f, h.Size); err != nil {
		return fmt.Errorf("pack %s: %w", p, err)
	}
	return nil
}
