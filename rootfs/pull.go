package rootfs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Policy says when Pull asks the source although the store may have the image.
type Policy string

// The policies, as Docker names them.
const (
	PullMissing Policy = "missing" // only if the store has no image of that name; the zero value means this too
	PullAlways  Policy = "always"  // ask; layers are fetched only if the manifest has changed
	PullNever   Policy = "never"   // never; ErrNotFound if the store has no image of that name
)

// PullOptions modify Pull. The zero value is valid.
type PullOptions struct {
	Progress Progress // nil is silent
	Platform string   // "os/arch[/variant]"; "" is Linux on this machine's processor
	Policy   Policy
	Name     string // "" means the reference itself
}

// ImportOptions modify Import. The zero value is valid.
type ImportOptions struct {
	Progress Progress     // nil is silent
	Platform string       // which image of several; "" is Linux on this machine's processor
	Config   *ImageConfig // replaces the source's configuration, or gives one to a tar or directory; nil keeps it
}

// Pull returns the image called ref, fetching it if the policy says so. ref is a registry reference by Docker's
// rules, optionally with "docker://" before it, or "oci:PATH" and the other kinds of Import, which are
// read anew each time except under PullNever.
//
// Fetching is all or nothing: when it fails or is cancelled, nothing of it stays. Callers that want the same
// image at once wait for the one that fetches it. Errors: ErrNotFound, ErrSource, ErrDigest, *EntryError,
// *LimitError, and those of the registry and the machine.
func (s *Store) Pull(ctx context.Context, ref string, opt PullOptions) (Image, error) {
	switch opt.Policy {
	case "", PullMissing, PullAlways, PullNever:
	default:
		return Image{}, fmt.Errorf("pull policy %q: want missing, always or never", opt.Policy)
	}
	kind, rest := splitSource(ref)
	if kind != "" && kind != kindRegistry {
		if opt.Name == "" {
			return Image{}, fmt.Errorf("pull %s: needs a name: %w", ref, ErrSource)
		}
		if opt.Policy == PullNever {
			return s.Get(opt.Name)
		}
		return s.Import(ctx, ref, opt.Name, ImportOptions{Progress: opt.Progress, Platform: opt.Platform})
	}
	want := rest
	if opt.Name != "" {
		want = opt.Name
	}
	as, err := normalizeName(want)
	if err != nil {
		return Image{}, fmt.Errorf("pull: %w", err)
	}
	if opt.Policy != PullAlways {
		img, err := s.present(as, opt.Platform)
		if err == nil || opt.Policy == PullNever {
			return img, err
		}
	}
	lock, err := s.lockWork(ctx, "pull "+as)
	if err != nil {
		return Image{}, err
	}
	defer lock.release()
	if opt.Policy != PullAlways { // somebody may have fetched it meanwhile
		if img, err := s.present(as, opt.Platform); err == nil {
			return img, nil
		}
	}
	img, err := s.fetch(ctx, rest, as, opt)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", as, err)
	}
	return img, nil
}

// present finds an image that is for the platform, if one was asked for.
func (s *Store) present(name, platform string) (Image, error) {
	img, err := s.Get(name)
	if err != nil || platform == "" {
		return img, err
	}
	want, err := parsePlatform(platform)
	if err != nil {
		return Image{}, err
	}
	have, err := v1.ParsePlatform(img.Platform)
	if err != nil || !have.Satisfies(want) {
		return Image{}, fmt.Errorf("image %s is for %s, not %s: %w", name, img.Platform, platform, ErrNotFound)
	}
	return img, nil
}

// Import makes an image of a local source and calls it name. The source is "oci:PATH" (OCI layout directory),
// "docker-archive:PATH" (tar file of "docker save", or of an OCI layout), "dir:PATH", "tar:PATH" (a root file
// system) or a bare PATH, whose kind is then found out. Tar files may be compressed with gzip, zstd or bzip2. An
// image that had the name loses it. Errors as for Pull.
func (s *Store) Import(ctx context.Context, source, name string, opt ImportOptions) (Image, error) {
	as, err := normalizeName(name)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	if strings.Contains(as, "@") {
		return Image{}, fmt.Errorf("import as %s: a name with a digest comes only from a registry: %w", as, ErrSource)
	}
	platform, err := parsePlatform(opt.Platform)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	if kind, _ := splitSource(source); kind == kindRegistry {
		return Image{}, fmt.Errorf("import %s: pull it instead: %w", source, ErrSource)
	}
	src, err := s.openLocal(ctx, source, platform)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	defer src.close()
	img, err := s.buildAndCommit(ctx, src, as, opt.Progress, opt.Config)
	if err != nil {
		return Image{}, fmt.Errorf("import %s: %w", source, err)
	}
	return img, nil
}

func (s *Store) buildAndCommit(ctx context.Context, src *source, as string, p Progress, c *ImageConfig) (Image, error) {
	if p == nil {
		p = silent{}
	}
	b := &builder{store: s, source: src, progress: p}
	f, r, err := b.build(ctx)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	if c != nil {
		r.Config = *c
	}
	return s.commit(ctx, f, r, as, tag{Source: src.text, Manifest: src.manifest})
}

// commit puts a finished image into the store under a name.
func (s *Store) commit(ctx context.Context, f *os.File, r record, as string, n tag) (Image, error) {
	lock, err := s.lockStore(ctx)
	if err != nil {
		return Image{}, err
	}
	defer lock.release()
	all, err := s.readNames()
	if err != nil {
		return Image{}, err
	}
	if err := s.storeBlob(f, r); err != nil {
		return Image{}, fmt.Errorf("store image: %w", err)
	}
	if n.Image, err = s.writeRecord(r); err != nil {
		return Image{}, err
	}
	n.Updated = time.Now().UTC().Truncate(time.Second)
	all.Names[as] = n
	if err := s.writeNames(all); err != nil {
		return Image{}, err
	}
	return s.find(as, all)
}

// storeBlob gives the EROFS file its name. One that is there already is the same, unless it was cut short
// behind the store's back; then it is replaced. It needs the store lock.
func (s *Store) storeBlob(f *os.File, r record) error {
	path := s.blobPath(r.Rootfs)
	if info, err := os.Lstat(path); err == nil && (info.Size() != r.Size || !info.Mode().IsRegular()) {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return publish(f, path)
}
