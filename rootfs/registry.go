package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// parallelDownloads is how many layers of one image are downloaded at once.
const parallelDownloads = 3

// fetch gets an image from a registry. The work lock for the name is held.
func (s *Store) fetch(ctx context.Context, ref, as string, opt PullOptions) (Image, error) {
	p := opt.Progress
	if p == nil {
		p = silent{}
	}
	from, err := parseReference(ref)
	if err != nil {
		return Image{}, err
	}
	platform, err := parsePlatform(opt.Platform)
	if err != nil {
		return Image{}, err
	}
	step := Step{ID: as, Phase: PhaseResolve}
	p.Update(step)
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(s.keychain), remote.WithPlatform(platform),
		remote.WithUserAgent("spore"),
	}
	if s.transport != nil {
		options = append(options, remote.WithTransport(s.transport))
	}
	img, err := remote.Image(from, options...)
	if err != nil {
		return Image{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Image{}, err
	}
	step.Finished = true
	p.Update(step)
	if have, err := s.Get(as); err == nil && have.Manifest == digest.String() {
		return have, nil
	}
	src, manifest, err := remoteSource(img)
	if err != nil {
		return Image{}, err
	}
	src.text, src.manifest = "docker://"+from.Name(), digest.String()
	if src.platform == "" {
		src.platform = platform.String()
	}
	return s.download(ctx, src, manifest, as, remoteBlobs{from.Context(), options}, p)
}

// remoteSource reads the manifest and the configuration of an image.
func remoteSource(img v1.Image) (*source, *v1.Manifest, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, nil, err
	}
	if manifest.Config.Size > metadataMax {
		return nil, nil, &LimitError{Name: "manifest", Limit: metadataMax}
	}
	if !manifest.Config.MediaType.IsConfig() {
		return nil, nil, fmt.Errorf("configuration of type %.128q: %w", manifest.Config.MediaType, ErrSource)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	src, err := newSource(config, len(manifest.Layers))
	return src, manifest, err
}

// remoteBlobs is the repository that layers come from. Alternative addresses that a manifest may list are not
// used: an image must not make us ask other servers.
type remoteBlobs struct {
	repository name.Repository
	options    []remote.Option
}

// open starts the download of a blob. Reading it to its end checks its digest and size.
func (r remoteBlobs) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	options := append(r.options[:len(r.options):len(r.options)], remote.WithContext(ctx))
	l, err := remote.Layer(r.repository.Digest(d.Digest.String()), options...)
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}

// download fetches layers into unnamed files, a few at once, while those that have arrived are flattened in order.
func (s *Store) download(ctx context.Context, src *source, m *v1.Manifest, as string, from remoteBlobs, p Progress) (Image, error) {
	total := int64(0)
	for _, d := range m.Layers {
		if d.Size < 0 || d.Size > s.limits.Size {
			return Image{}, &LimitError{Name: "size", Limit: s.limits.Size}
		}
		if total += d.Size; total > s.limits.Size {
			return Image{}, &LimitError{Name: "size", Limit: s.limits.Size}
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, parallelDownloads)
	for i, d := range m.Layers {
		arrived := make(chan *os.File, 1)
		l := &src.layers[i]
		l.id, l.size = d.Digest.Hex, d.Size
		l.open = func(ctx context.Context) (io.ReadCloser, error) {
			select {
			case f := <-arrived:
				return f, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		group.Go(func() error {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return ctx.Err()
			}
			f, err := s.downloadLayer(ctx, from, d, p)
			if err != nil {
				return fmt.Errorf("download layer %s: %w", d.Digest, err)
			}
			arrived <- f
			return nil
		})
		defer func() { // a file that nobody took
			select {
			case f := <-arrived:
				f.Close()
			default:
			}
		}()
	}
	var img Image
	group.Go(func() (err error) {
		img, err = s.buildAndCommit(ctx, src, as, p, nil)
		return err
	})
	err := group.Wait()
	return img, err
}

// downloadLayer fetches one layer as it is, and checks it.
func (s *Store) downloadLayer(ctx context.Context, from remoteBlobs, d v1.Descriptor, p Progress) (*os.File, error) {
	body, err := from.open(ctx, d)
	if err != nil {
		return nil, err
	}
	counted := newCountingReader(body, Step{ID: shortID(d.Digest.Hex), Phase: PhaseDownload, Total: d.Size}, p)
	defer counted.Close()
	f, err := s.tempFile()
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(f, io.LimitReader(counted, d.Size+1))
	if err == nil && n != d.Size {
		err = fmt.Errorf("%d bytes instead of %d: %w", n, d.Size, ErrDigest)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	counted.finish()
	return f, nil
}
