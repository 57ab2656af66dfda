package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"spore/emuhost/frame"
)

// The outer machine's files are looked up and read anew for every command, so that what changes outside is seen. For the programs that
// most commands are, that takes longer than they do. A client that has looked at them itself says so, and what it has seen is copied
// into memory once.

// keptSets is how many sets of copies there are at most: one for each build that somebody works with.
const keptSets = 4

// kept is a directory of sets.
type kept struct {
	dir string
	mu  sync.Mutex // one is made at a time
}

// run makes the copy of its program what a command runs, where the client names files to be kept.
func (k *kept) run(start *frame.Start) error {
	if len(start.Kept) == 0 {
		return nil
	}
	base := filepath.Dir(start.Args[0])
	set, err := k.set(base, start.Kept)
	if err != nil {
		return fmt.Errorf("keep %s: %w", start.Args[0], err)
	}
	path := filepath.Join(set, filepath.Base(start.Args[0]))
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("keep %s: %w", start.Args[0], err)
	}
	start.Args[0] = path
	return nil
}

// set returns the directory with copies of files, at the paths that they have below base.
func (k *kept) set(base string, files []frame.Kept) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b, err := json.Marshal(files)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	set := filepath.Join(k.dir, hex.EncodeToString(sum[:12]))
	if _, err := os.Stat(set); err == nil {
		now := time.Now()
		return set, os.Chtimes(set, now, now)
	}
	fresh := set + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	for _, f := range files {
		rel, err := filepath.Rel(base, f.Path)
		if err != nil || !filepath.IsLocal(rel) {
			return "", fmt.Errorf("%s is not below %s", f.Path, base)
		}
		if err := copyKept(f, filepath.Join(fresh, rel)); err != nil {
			return "", err
		}
	}
	if err := os.Rename(fresh, set); err != nil {
		return "", err
	}
	return set, k.prune()
}

// copyKept copies a file that is what the client has seen.
func copyKept(f frame.Kept, to string) error {
	src, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20)) // few and large requests
	if closeErr := dst.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if st, err = src.Stat(); err != nil {
		return err
	}
	if st.Size() != f.Size || st.ModTime().UnixNano() != f.ModTime {
		return fmt.Errorf("%s has changed meanwhile", f.Path)
	}
	return nil
}

// prune removes the sets that were not used for longest. What runs out of them runs on.
func (k *kept) prune() error {
	list, err := os.ReadDir(k.dir)
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	for _, e := range list {
		if st, err := e.Info(); err == nil {
			used[e.Name()] = st.ModTime()
		}
	}
	slices.SortFunc(list, func(a, b os.DirEntry) int {
		return cmp.Or(used[b.Name()].Compare(used[a.Name()]), cmp.Compare(a.Name(), b.Name()))
	})
	for _, e := range list[min(keptSets, len(list)):] {
		if err := os.RemoveAll(filepath.Join(k.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
