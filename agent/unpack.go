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
	maxEntryName = 4096     // bytes
	maxDirNames  = 32 << 20 // bytes of the names of all directories, which are remembered to the end
)

// ErrArchive is matched by every error about a tar stream that is refused.
var ErrArchive = errors.New("refused archive entry")

// Owner is who gets what a copy makes.
type Owner struct{ UID, GID int }

// Rules of an Unpack. The zero value is for a stream that is not trusted.
type Rules struct {
	Owner *Owner // of all that is made; nil leaves it to the caller's
	Links bool   // take links that lead out of the tree: for a guest, where only the guest follows them
}

// Unpack reads a tar stream made by Pack and puts its tree at dest: into it, under its own name, when dest is
// a directory or ends with a slash; as dest otherwise, whose parent must exist. Nothing is written outside that
// tree: other names, names with "..", links that lead out, devices, sparse files and streams beyond the bounds
// are refused with ErrArchive. Links that are already there are not followed.
func Unpack(r io.Reader, dest string, rules Rules) error {
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
	u := unpacker{base: root, rename: rename, rules: rules}
	defer u.close()
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

// unpacker puts a tree below base. Once its top directory exists all the rest happens below that one, so that
// neither a name nor a link of the stream leads to its neighbours.
type unpacker struct {
	base   *os.Root
	rename string // replaces the top name; empty keeps it
	rules  Rules

	top   string   // the stream's name of the top; empty until it came
	tree  *os.Root // the top, when it is a directory
	bytes int64
	names int
	dirs  []directory
	known map[string]bool // the names in dirs
}

// directory is what a directory gets when all is in it: before, it has to be writable, and its time changes.
type directory struct {
	name string
	mode fs.FileMode
	at   time.Time
}

func (u *unpacker) close() {
	if u.tree != nil {
		u.tree.Close()
	}
}

// entry makes one entry.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean(h.Name)
	if len(h.Name) > maxEntryName || !filepath.IsLocal(name) || name == "." || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: name %.200q", ErrArchive, h.Name)
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return fmt.Errorf("%w: %.200q is sparse", ErrArchive, h.Name)
		}
	}
	top, rest, below := strings.Cut(name, "/")
	switch {
	case u.top == "" && below, u.top != "" && (top != u.top || u.tree == nil):
		return fmt.Errorf("%w: %.200q is outside %.200q", ErrArchive, h.Name, u.top)
	case u.top == "":
		return u.first(h, name, content)
	case !below:
		return fmt.Errorf("%w: %.200q comes twice", ErrArchive, h.Name)
	case !u.known[path.Dir(rest)]: // so that no part of a name is a link
		return fmt.Errorf("%w: %.200q comes before its directory", ErrArchive, h.Name)
	}
	return u.put(u.tree, rest, h, content)
}

// first makes the top.
func (u *unpacker) first(h *tar.Header, name string, content io.Reader) error {
	u.top = name
	if u.rename != "" {
		name = u.rename
	}
	if h.Typeflag != tar.TypeDir {
		return u.put(u.base, name, h, content)
	}
	if err := makeDir(u.base, name); err != nil {
		return err
	}
	tree, err := u.base.OpenRoot(name)
	if err != nil {
		return err
	}
	u.tree = tree
	return u.directory(".", h)
}

// put makes one entry in root.
func (u *unpacker) put(root *os.Root, name string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := makeDir(root, name); err != nil {
			return err
		}
		return u.directory(name, h)
	case tar.TypeReg:
		return u.file(root, name, h, content)
	case tar.TypeSymlink:
		if !u.rules.Links && (root == u.base || !localLink(name, h.Linkname)) {
			return fmt.Errorf("%w: %.200q links to %.200q, outside the copied tree", ErrArchive, h.Name, h.Linkname)
		}
		if err := clear(root, name); err != nil {
			return err
		}
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(root, name)
	}
	return fmt.Errorf("%w: %.200q is of type %q", ErrArchive, h.Name, h.Typeflag)
}

// makeDir makes a directory, or takes one that is there; not a link to one.
func makeDir(root *os.Root, name string) error {
	err := root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if st, statErr := root.Lstat(name); statErr != nil || !st.IsDir() {
		return &os.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
	}
	return nil
}

// clear removes what is at name unless it is a directory, so that nothing is written through a link, into a
// FIFO or to another name of the same file.
func clear(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return &os.PathError{Op: "replace", Path: name, Err: errors.New("is a directory")}
	}
	return root.Remove(name)
}

// localLink reports whether a link at name leads to somewhere in the tree that both are in, whatever other local
// links it passes: it may go up only at its start, where it leaves real directories.
func localLink(name, target string) bool {
	down := target
	for strings.HasPrefix(down, "../") {
		down = strings.TrimLeft(down[3:], "/")
	}
	if strings.Contains("/"+down+"/", "/../") && down != ".." {
		return false
	}
	return target != "" && !path.IsAbs(target) && filepath.IsLocal(path.Join(path.Dir(name), target))
}

// directory remembers what a directory of the tree is to get.
func (u *unpacker) directory(name string, h *tar.Header) error {
	if u.names += len(name) + 1; u.names > maxDirNames {
		return fmt.Errorf("%w: too many directories", ErrArchive)
	}
	if u.known == nil {
		u.known = map[string]bool{}
	}
	u.known[name] = true
	u.dirs = append(u.dirs, directory{name, fs.FileMode(h.Mode).Perm(), h.ModTime})
	return u.own(u.tree, name)
}

func (u *unpacker) file(root *os.Root, name string, h *tar.Header, content io.Reader) error {
	if h.Size < 0 || h.Size > maxTarBytes-u.bytes {
		return fmt.Errorf("%w: more than %d bytes", ErrArchive, int64(maxTarBytes))
	}
	u.bytes += h.Size
	if err := clear(root, name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, content, h.Size)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if u.rules.Owner != nil {
		err = errors.Join(err, f.Chown(u.rules.Owner.UID, u.rules.Owner.GID))
	}
	err = errors.Join(err, f.Chmod(fs.FileMode(h.Mode).Perm()), f.Close())
	if err != nil {
		return fmt.Errorf("unpack %.200q: %w", h.Name, err)
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

func (u *unpacker) own(root *os.Root, name string) error {
	if u.rules.Owner == nil {
		return nil
	}
	return root.Lchown(name, u.rules.Owner.UID, u.rules.Owner.GID)
}

// finish gives directories their modes and times, the last made first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := u.tree.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := u.tree.Chtimes(d.name, d.at, d.at); err != nil {
			return err
		}
	}
	return nil
}
