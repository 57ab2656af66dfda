package rootfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Bounds of what an image's metadata may be.
const (
	metadataMax = 4 << 20 // bytes of one manifest, index or configuration
	layersMax   = 512
	indexDepth  = 4 // indexes in indexes
)

// blobs is where an OCI layout or a Docker archive keeps its files.
type blobs interface {
	open(name string) (r io.ReadCloser, size int64, err error)
}

// dirBlobs is a directory. Names cannot leave it, not even through symbolic links.
type dirBlobs struct{ root *os.Root }

func (d dirBlobs) open(name string) (io.ReadCloser, int64, error) {
	info, err := d.root.Stat(name)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file: %w", name, ErrSource)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// readMetadata reads a small file whole.
func readMetadata(b blobs, name string) ([]byte, error) {
	r, _, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, metadataMax+1))
	if err == nil && len(data) > metadataMax {
		err = &LimitError{Name: "manifest", Limit: metadataMax}
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// readBlob reads a small blob and checks it.
func readBlob(b blobs, h v1.Hash) ([]byte, error) {
	data, err := readMetadata(b, blobName(h))
	if err != nil {
		return nil, err
	}
	if got, _, err := v1.SHA256(bytes.NewReader(data)); err != nil || got != h {
		return nil, errors.Join(err, fmt.Errorf("blob %s: %w", h, ErrDigest))
	}
	return data, nil
}

// openLayout opens an OCI image layout directory.
func openLayout(path string, p v1.Platform) (*source, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	src, err := openImageLayout(dirBlobs{root}, p)
	if err != nil {
		root.Close()
		return nil, err
	}
	src.close = func() { root.Close() }
	return src, nil
}

// openImageLayout reads the index of an OCI layout and the one image in it for the platform.
func openImageLayout(b blobs, p v1.Platform) (*source, error) {
	data, err := readMetadata(b, "index.json")
	if err != nil {
		return nil, err
	}
	var digest v1.Hash
	for depth := 0; ; depth++ {
		if depth == indexDepth {
			return nil, fmt.Errorf("more than %d indexes in one another: %w", indexDepth, ErrSource)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read index: %w: %w", ErrSource, err)
		}
		d, err := choose(index.Manifests, p)
		if err != nil {
			return nil, err
		}
		digest = d.Digest
		if data, err = readBlob(b, digest); err != nil {
			return nil, err
		}
		if !d.MediaType.IsIndex() {
			break
		}
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w: %w", digest, ErrSource, err)
	}
	config, err := readBlob(b, manifest.Config.Digest)
	if err != nil {
		return nil, err
	}
	src, err := newSource(config, len(manifest.Layers))
	if err != nil {
		return nil, err
	}
	src.manifest = digest.String()
	for i, d := range manifest.Layers {
		src.layers[i].id, src.layers[i].size = d.Digest.Hex, d.Size
		src.layers[i].open = func(context.Context) (io.ReadCloser, error) {
			r, _, err := b.open(blobName(d.Digest))
			return r, err
		}
	}
	return src, nil
}

// choose picks the one manifest of an index that fits the platform. A single one fits if it says nothing else.
func choose(list []v1.Descriptor, p v1.Platform) (v1.Descriptor, error) {
	var fit []v1.Descriptor
	for _, d := range list {
		if !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
			continue
		}
		if d.Platform == nil || d.Platform.Satisfies(p) {
			fit = append(fit, d)
		}
	}
	switch {
	case len(fit) == 0:
		return v1.Descriptor{}, fmt.Errorf("no image for %s among %d: %w", p, len(list), ErrSource)
	case len(fit) > 1 && fit[0].Digest != fit[1].Digest && fit[0].Platform == nil:
		return v1.Descriptor{}, fmt.Errorf("%d images, want one: %w", len(fit), ErrSource)
	}
	return fit[0], nil
}

// newSource reads an image configuration and makes room for its layers.
func newSource(config []byte, layers int) (*source, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w: %w", ErrSource, err)
	}
	if layers > layersMax {
		return nil, &LimitError{Name: "layers", Limit: layersMax}
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("configuration lists %d layers, manifest %d: %w", len(c.RootFS.DiffIDs), layers, ErrSource)
	}
	src := &source{config: c, layers: make([]sourceLayer, layers), close: func() {}}
	for i := range src.layers {
		src.layers[i].diffID = c.RootFS.DiffIDs[i]
	}
	if p := c.Platform(); p != nil && p.OS != "" {
		src.platform = p.String()
	}
	return src, nil
}

// savedImage is one element of a Docker archive's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archive) savedImages() ([]savedImage, error) {
	data, err := readMetadata(a, "manifest.json")
	if err != nil {
		return nil, err
	}
	var list []savedImage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read manifest.json: %w: %w", ErrSource, err)
	}
	return list, nil
}

// looksSaved reports whether manifest.json is that of a Docker archive, and not a file of a root file system.
func (a *archive) looksSaved() bool {
	list, err := a.savedImages()
	return err == nil && len(list) > 0 && list[0].Config != ""
}

// openSaved opens the one image of a Docker archive.
func (a *archive) openSaved() (*source, error) {
	list, err := a.savedImages()
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("%d images in the archive, want one: %w", len(list), ErrSource)
	}
	config, err := readMetadata(a, list[0].Config)
	if err != nil {
		return nil, err
	}
	src, err := newSource(config, len(list[0].Layers))
	if err != nil {
		return nil, err
	}
	for i, name := range list[0].Layers {
		_, size, err := a.open(name)
		if err != nil {
			return nil, err
		}
		src.layers[i].id, src.layers[i].size = src.layers[i].diffID.Hex, size
		src.layers[i].open = func(context.Context) (io.ReadCloser, error) {
			r, _, err := a.open(name)
			return r, err
		}
	}
	return src, nil
}
