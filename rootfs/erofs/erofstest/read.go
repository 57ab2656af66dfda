// Package erofstest reads EROFS images for tests, with an implementation that shares nothing with our writer.
package erofstest

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"
)

// Entry is one name of an image.
type Entry struct {
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64
	Mtime    int64 // seconds
	Nsec     int64
	Nlink    int
	Ino      int64
	Target   string // of a symbolic link
	Content  string // of a regular file
	Xattrs   map[string]string
}

// Read reads all of an image, contents included, by path without a leading slash; the root is ".".
// Every file is also looked up by its path, as a kernel would.
func Read(r io.ReaderAt) (map[string]Entry, error) {
	img, err := reader.Open(r)
	if err != nil {
		return nil, err
	}
	all := map[string]Entry{}
	err = fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		listed, err := d.Info()
		if err != nil {
			return err
		}
		info, err := fs.Lstat(img, path)
		if err != nil {
			return err
		}
		st, listedSt := info.Sys().(*reader.Stat), listed.Sys().(*reader.Stat)
		if st.Ino != listedSt.Ino {
			return fmt.Errorf("%s: listed as inode %d, found as %d", path, listedSt.Ino, st.Ino)
		}
		e := Entry{
			Mode: st.Mode, UID: st.UID, GID: st.GID, Size: info.Size(), Mtime: int64(st.Mtime), Nsec: int64(st.MtimeNs),
			Nlink: st.Nlink, Ino: st.Ino, Xattrs: st.Xattrs,
		}
		switch info.Mode().Type() {
		case 0:
			content, err := fs.ReadFile(img, path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if int64(len(content)) != info.Size() {
				return fmt.Errorf("%s: read %d bytes of %d", path, len(content), info.Size())
			}
			e.Content = string(content)
		case fs.ModeSymlink:
			if e.Target, err = fs.ReadLink(img, path); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		all[path] = e
		return nil
	})
	return all, err
}

// MustRead is Read for tests.
func MustRead(t testing.TB, r io.ReaderAt) map[string]Entry {
	t.Helper()
	all, err := Read(r)
	if err != nil {
		t.Fatalf("read image back: %v", err)
	}
	return all
}

// Lines describes an image in one line per name, sorted: "MODE PATH", " -> TARGET" for a link, " = CONTENT" for a
// regular file of at most 40 bytes. The root is left out.
func Lines(all map[string]Entry) []string {
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(all)) {
		e := all[path]
		if path == "." {
			continue
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%v %s", e.Mode, path)
		switch {
		case e.Target != "":
			fmt.Fprintf(&b, " -> %s", e.Target)
		case e.Mode.IsRegular() && len(e.Content) <= 40:
			fmt.Fprintf(&b, " = %s", e.Content)
		}
		lines = append(lines, b.String())
	}
	return lines
}
