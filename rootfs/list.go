package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// minPrefix is the shortest digest prefix that names an image, in hex digits.
const minPrefix = 4

// List returns the images sorted by name; those without a name come last.
func (s *Store) List() ([]Image, error) {
	n, err := s.readNames()
	if err != nil {
		return nil, err
	}
	digests, err := s.digests()
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, d := range digests {
		img, err := s.image(d, n)
		if errors.Is(err, ErrNotFound) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int {
		if (a.Name == "") != (b.Name == "") {
			return strings.Compare(b.Name, a.Name)
		}
		return strings.Compare(a.Name+a.Digest, b.Name+b.Digest)
	})
	return images, nil
}

// Get finds an image by one of its names, or by its digest or the beginning of it, at least four hex digits, with
// or without "sha256:". A name wins over a digest. Errors: ErrNotFound, ErrAmbiguous.
func (s *Store) Get(nameOrDigest string) (Image, error) {
	n, err := s.readNames()
	if err != nil {
		return Image{}, err
	}
	return s.find(nameOrDigest, n)
}

func (s *Store) find(want string, n names) (Image, error) {
	if nm, err := normalizeName(want); err == nil {
		if known, ok := n.Names[nm]; ok {
			img, err := s.image(known.Image, n)
			img.Name, img.Source, img.Manifest, img.Updated = nm, known.Source, known.Manifest, known.Updated
			return img, err
		}
	}
	prefix := strings.TrimPrefix(want, "sha256:")
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return Image{}, fmt.Errorf("image %.256q: %w", want, ErrNotFound)
	}
	digests, err := s.digests()
	if err != nil {
		return Image{}, err
	}
	var found []string
	for _, d := range digests {
		if strings.HasPrefix(d, prefix) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fmt.Errorf("image %.256q: %w", want, ErrNotFound)
	case 1:
		return s.image(found[0], n)
	}
	return Image{}, fmt.Errorf("image %.256q: %w", want, ErrAmbiguous)
}

// Remove takes a name off an image, and deletes the image with its last name. Given a digest, it deletes the
// image, whose other names must be none or one unless force is set. An image that is in use is ErrInUse; with
// force it is deleted all the same, and those who hold it open keep it until they close it.
func (s *Store) Remove(ctx context.Context, nameOrDigest string, force bool) error {
	lock, err := s.lockStore(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	n, err := s.readNames()
	if err != nil {
		return err
	}
	img, err := s.find(nameOrDigest, n)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	digest := strings.TrimPrefix(img.Digest, "sha256:")
	drop := img.Names
	if nm, err := normalizeName(nameOrDigest); err == nil && slices.Contains(img.Names, nm) {
		drop = []string{nm}
	} else if len(img.Names) > 1 && !force {
		return fmt.Errorf("remove image %s: named %s: %w", nameOrDigest, strings.Join(img.Names, ", "), ErrInUse)
	}
	last := len(drop) == len(img.Names)
	if last && !force {
		if used, err := inUse(img.Path); err != nil || used {
			return errors.Join(err, fmt.Errorf("remove image %s: %w", nameOrDigest, ErrInUse))
		}
	}
	for _, nm := range drop {
		delete(n.Names, nm)
	}
	if err := s.writeNames(n); err != nil {
		return err
	}
	if !last {
		return nil
	}
	if err := os.Remove(s.recordPath(digest)); err != nil {
		return fmt.Errorf("remove image %s: %w", nameOrDigest, err)
	}
	_, err = s.sweepBlobs(force)
	return err
}

// Prune deletes every image without a name that is not in use, and writable templates. It returns the bytes of
// disk that this freed.
func (s *Store) Prune(ctx context.Context) (freed int64, err error) {
	lock, err := s.lockStore(ctx)
	if err != nil {
		return 0, err
	}
	defer lock.release()
	n, err := s.readNames()
	if err != nil {
		return 0, err
	}
	named := map[string]bool{}
	for _, nm := range n.Names {
		named[nm.Image] = true
	}
	digests, err := s.digests()
	if err != nil {
		return 0, err
	}
	for _, d := range digests {
		if named[d] {
			continue
		}
		img, err := s.image(d, n)
		if err == nil {
			if used, err := inUse(img.Path); err != nil || used {
				continue
			}
		}
		if err := os.Remove(s.recordPath(d)); err != nil {
			return freed, fmt.Errorf("prune images: %w", err)
		}
	}
	freed, err = s.sweepBlobs(false)
	if err != nil {
		return freed, err
	}
	n2, err := s.removeFiles(filepath.Join(s.dir, "writable"), func(string) bool { return true })
	freed += n2
	half := func(path string) bool { return strings.HasSuffix(path, halfWritten) } // replaceFile was killed
	for _, dir := range []string{s.dir, filepath.Join(s.dir, "images")} {
		n, e := s.removeFiles(dir, half)
		freed, err = freed+n, errors.Join(err, e)
	}
	return freed, err
}

// sweepBlobs deletes the EROFS files that no record refers to, those in use only if force is set. It needs
// the store lock.
func (s *Store) sweepBlobs(force bool) (freed int64, err error) {
	digests, err := s.digests()
	if err != nil {
		return 0, err
	}
	keep := map[string]bool{}
	for _, d := range digests {
		img, err := s.image(d, names{})
		if err != nil {
			return 0, err // better to keep a file than to delete that of a record that cannot be read
		}
		keep[img.Path] = true
	}
	return s.removeFiles(filepath.Join(s.dir, "blobs/sha256"), func(path string) bool {
		if keep[path] {
			return false
		}
		used, err := inUse(path)
		return err == nil && (force || !used)
	})
}

// removeFiles deletes the files of dir that remove says yes to and counts their disk space.
func (s *Store) removeFiles(dir string, remove func(path string) bool) (freed int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("clean store: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !remove(path) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == nil {
			freed += st.Blocks * 512
		}
		if err := os.Remove(path); err != nil {
			return freed, fmt.Errorf("clean store: %w", err)
		}
	}
	return freed, nil
}

// inUse reports whether somebody holds the EROFS file; see Image.Open. A missing file is not in use.
func inUse(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = flock.Take(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
