package layer

import (
	"strings"

	"spore/rootfs/erofs"
)

const (
	pathMax   = 4096 // bytes of a name in a layer
	depthMax  = 512  // directories of a resolved name
	linkLimit = 64   // symbolic links followed for one name
	inodeCost = 384  // bytes of memory an inode with its map entry is charged with
)

// Tree is the flattened image while it is being built. It is not safe for concurrent use.
type Tree struct {
	root    *erofs.Inode
	out     *erofs.Writer
	limits  Limits
	layer   uint32 // number of the layer being applied, from 1; what an inode's Mark is compared with
	entries int
	meta    int64 // bytes of memory, see Limits.Metadata
	inline  int64 // bytes of file contents kept in memory
	stream  int64 // unpacked bytes of all layers
	steps   int   // see Limits.Steps
	warn    func(string)
	// linked holds this layer's hard links to files of earlier layers, which their inodes' marks do not show.
	linked map[name]struct{}
}

// name is a directory entry.
type name struct {
	dir  *erofs.Inode
	base string
}

// NewTree starts an empty tree whose contents go to out. warn (may be nil) is told about entries that were
// left out, such as device nodes.
func NewTree(out *erofs.Writer, limits Limits, warn func(string)) *Tree {
	if warn == nil {
		warn = func(string) {}
	}
	t := &Tree{out: out, limits: limits.WithDefaults(), warn: warn,
		linked: map[name]struct{}{}}
	t.root = &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofs.Inode{}}
	return t
}

// Root is the tree itself, for erofs.Writer.Finish.
func (t *Tree) Root() *erofs.Inode { return t.root }

// charge accounts for an inode or for more memory of one.
func (t *Tree) charge(entries int, bytes int) error {
	if t.entries += entries; t.entries > t.limits.Entries {
		return &LimitError{"entries", int64(t.limits.Entries)}
	}
	if t.meta += int64(entries)*inodeCost + int64(bytes); t.meta > t.limits.Metadata {
		return &LimitError{"metadata", t.limits.Metadata}
	}
	return nil
}

// step accounts for one directory entry that is looked at.
func (t *Tree) step() error {
	if t.steps++; t.steps > t.limits.Steps {
		return &LimitError{"steps", int64(t.limits.Steps)}
	}
	return nil
}

// split cuts a name of a layer into its components. Leading slashes and "." count for nothing, as tar reads
// them; the root has none.
func split(name string) ([]string, error) {
	if len(name) > pathMax || strings.IndexByte(name, 0) >= 0 {
		return nil, ErrPath
	}
	var parts []string
	for _, p := range strings.Split(name, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == ".." || len(p) > erofs.NameMax:
			return nil, ErrPath
		}
		parts = append(parts, p)
	}
	if len(parts) > depthMax {
		return nil, ErrPath
	}
	return parts, nil
}

// walker resolves names inside the tree: absolute link targets start at the root and ".." stops there.
type walker struct {
	tree  *Tree
	stack []*erofs.Inode // directories from the root down
	links int
	// make creates missing directories; without it they are an ErrParent.
	make bool
}

func (w *walker) dir() *erofs.Inode { return w.stack[len(w.stack)-1] }

// step goes into the directory that name is or links to.
func (w *walker) step(name string) error {
	if err := w.tree.step(); err != nil {
		return err
	}
	switch name {
	case "", ".":
		return nil
	case "..":
		if len(w.stack) > 1 {
			w.stack = w.stack[:len(w.stack)-1]
		}
		return nil
	}
	child := w.dir().Children[name]
	switch {
	case child == nil && !w.make:
		return ErrParent
	case child == nil:
		if len(name) > erofs.NameMax { // out of a link target
			return ErrPath
		}
		if err := w.tree.charge(1, len(name)); err != nil {
			return err
		}
		child = &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofs.Inode{}, Mark: w.tree.layer}
		w.dir().Children[name] = child
	case child.Type() == erofs.TypeSymlink:
		return w.follow(string(child.Inline))
	case !child.IsDir():
		return ErrParent
	}
	if len(w.stack) > depthMax {
		return ErrPath
	}
	w.stack = append(w.stack, child)
	return nil
}

func (w *walker) follow(target string) error {
	if w.links++; w.links > linkLimit {
		return ErrLoop
	}
	if strings.HasPrefix(target, "/") {
		w.stack = w.stack[:1]
	}
	for _, p := range strings.Split(target, "/") {
		if err := w.step(p); err != nil {
			return err
		}
	}
	return nil
}

// parent finds the directory that holds the last of parts, making missing ones if create is set.
func (t *Tree) parent(parts []string, create bool) (*erofs.Inode, error) {
	w := walker{tree: t, stack: []*erofs.Inode{t.root}, make: create}
	for _, p := range parts[:len(parts)-1] {
		if err := w.step(p); err != nil {
			return nil, err
		}
	}
	return w.dir(), nil
}

// lookup finds a name, following links among its parents but not the last component itself; nil if it is missing.
func (t *Tree) lookup(parts []string) (*erofs.Inode, error) {
	if len(parts) == 0 {
		return t.root, nil
	}
	dir, err := t.parent(parts, false)
	if err != nil {
		return nil, err
	}
	return dir.Children[parts[len(parts)-1]], nil
}

// Find returns the inode a name leads to, all symbolic links followed within the tree; nil if there is none.
func (t *Tree) Find(name string) *erofs.Inode {
	w := walker{tree: t, stack: []*erofs.Inode{t.root}}
	for w.links <= linkLimit {
		if strings.HasPrefix(name, "/") {
			w.stack = w.stack[:1]
		}
		parts := strings.Split(name, "/")
		for _, p := range parts[:len(parts)-1] {
			if w.step(p) != nil {
				return nil
			}
		}
		n := w.dir().Children[parts[len(parts)-1]]
		if n == nil || n.Type() != erofs.TypeSymlink {
			return n
		}
		name = string(n.Inline)
		w.links++
	}
	return nil
}

// whiteout removes what the layers below put at base in dir. What this layer has put there stays.
func (t *Tree) whiteout(dir *erofs.Inode, base string) error {
	child := dir.Children[base]
	if child == nil {
		return nil
	}
	kept, err := t.keep(dir, base, child)
	if err == nil && !kept {
		delete(dir.Children, base)
	}
	return err
}

// prune removes everything below dir that is of an earlier layer, and reports whether anything is left. A
// directory of an earlier layer stays if it holds something of this one. The depth is bounded by depthMax.
func (t *Tree) prune(dir *erofs.Inode) (kept bool, err error) {
	for base, child := range dir.Children {
		stays, err := t.keep(dir, base, child)
		if err != nil {
			return false, err
		}
		if !stays {
			delete(dir.Children, base)
		}
		kept = kept || stays
	}
	return kept, nil
}

// keep prunes a child and reports whether it is, or holds, something of the layer being applied.
func (t *Tree) keep(dir *erofs.Inode, base string, child *erofs.Inode) (kept bool, err error) {
	if err := t.step(); err != nil {
		return false, err
	}
	if child.IsDir() {
		if kept, err = t.prune(child); err != nil {
			return false, err
		}
	}
	return kept || t.own(dir, base), nil
}

// own reports whether the layer being applied has put base into dir.
func (t *Tree) own(dir *erofs.Inode, base string) bool {
	if dir.Children[base].Mark == t.layer {
		return true
	}
	_, ok := t.linked[name{dir, base}]
	return ok
}
