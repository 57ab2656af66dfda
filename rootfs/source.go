package rootfs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"spore/internal/contextio"
)

// Kinds of source, as written before the colon.
const (
	kindRegistry = "docker"
	kindOCI      = "oci"
	kindArchive  = "docker-archive"
	kindDir      = "dir"
	kindTar      = "tar"
)

// source is an image before it is in the store. Its layers are read once, in order, bottom first.
type source struct {
	text     string         // for Image.Source
	manifest string         // digest of the manifest; "" without one
	config   *v1.ConfigFile // nil for a plain tar or directory
	platform string
	layers   []sourceLayer
	close    func()
}

// sourceLayer is one layer: either a stream or a directory of the host.
type sourceLayer struct {
	id     string
	size   int64   // bytes of the stream; 0 if unknown
	diffID v1.Hash // of the unpacked stream; zero if unknown
	open   func(context.Context) (io.ReadCloser, error)
	dir    *os.Root
}

// splitSource cuts "KIND:PATH" or "docker://REFERENCE". kind is "" if the text names none.
func splitSource(text string) (kind, rest string) {
	if ref, ok := strings.CutPrefix(text, "docker://"); ok {
		return kindRegistry, ref
	}
	for _, k := range []string{kindOCI, kindArchive, kindDir, kindTar} {
		if path, ok := strings.CutPrefix(text, k+":"); ok {
			return k, path
		}
	}
	return "", text
}

// detect tells what is at path: a directory is an OCI layout if it has the file "oci-layout"; a file is whatever
// openArchive finds.
func detect(path string) (kind string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("open image source: %w", err)
	}
	switch {
	case info.IsDir():
		if _, err := os.Lstat(filepath.Join(path, "oci-layout")); err == nil {
			return kindOCI, nil
		}
		return kindDir, nil
	case info.Mode().IsRegular():
		return "", nil
	}
	return "", fmt.Errorf("open image source %s: neither file nor directory: %w", path, ErrSource)
}

// openLocal opens every kind of source but a registry. The caller calls close.
func (s *Store) openLocal(ctx context.Context, text string, platform v1.Platform) (*source, error) {
	kind, path := splitSource(text)
	if kind == "" {
		var err error
		if kind, err = detect(path); err != nil {
			return nil, err
		}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open image source: %w", err)
	}
	var src *source
	switch kind {
	case kindDir:
		src, err = openDir(abs)
	case kindTar:
		src, err = openTar(abs)
	case kindOCI:
		src, err = openLayout(abs, platform)
	default:
		src, kind, err = s.openArchive(ctx, abs, kind, platform)
	}
	if err != nil {
		return nil, fmt.Errorf("open image source %s: %w", text, err)
	}
	src.text = kind + ":" + abs
	if src.platform == "" {
		src.platform = platform.String()
	}
	return src, nil
}

func openDir(path string) (*source, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &source{
		layers: []sourceLayer{{id: filepath.Base(path), dir: root}},
		close:  func() { root.Close() },
	}, nil
}

// openTar opens a root file system in a tar file, compressed or not. The path may be a pipe or device.
func openTar(path string) (*source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return tarSource(f, filepath.Base(path)), nil
}

func tarSource(f *os.File, id string) *source {
	l := sourceLayer{id: id, open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(f), nil }}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		l.size = info.Size()
	}
	return &source{layers: []sourceLayer{l}, close: func() { f.Close() }}
}

// openArchive opens a tar file that holds an image as "docker save" or an OCI layout writes it, or, if kind
// leaves that open, is a root file system itself. A compressed archive is unpacked into the store first.
func (s *Store) openArchive(ctx context.Context, path, kind string, p v1.Platform) (*source, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	plain, err := s.plainArchive(ctx, f)
	if err != nil {
		f.Close()
		return nil, "", err
	}
	if plain != f {
		f.Close()
	}
	index, err := indexArchive(plain)
	var src *source
	switch {
	case err != nil:
		err = fmt.Errorf("read archive: %w: %w", ErrSource, err)
	case index.has("manifest.json") && (kind == kindArchive || index.looksSaved()):
		kind = kindArchive
		src, err = index.openSaved()
	case index.has("oci-layout") && index.has("index.json"):
		kind = kindArchive
		src, err = openImageLayout(index, p)
	case kind == kindArchive:
		err = fmt.Errorf("neither manifest.json nor index.json in it: %w", ErrSource)
	default:
		if _, err = plain.Seek(0, io.SeekStart); err == nil {
			return tarSource(plain, filepath.Base(path)), kindTar, nil
		}
	}
	if err != nil {
		plain.Close()
		return nil, "", err
	}
	src.close = func() { plain.Close() }
	return src, kind, nil
}

// plainArchive is f itself, or an unnamed file with its unpacked content.
func (s *Store) plainArchive(ctx context.Context, f *os.File) (*os.File, error) {
	r, err := decompress(f, s.limits.Ratio)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, ok := r.(*ratioReader); !ok {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	out, err := s.tempFile()
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(out, io.LimitReader(contextio.Reader(ctx, r), s.limits.Size+1))
	if err == nil && n > s.limits.Size {
		err = &LimitError{Name: "size", Limit: s.limits.Size}
	}
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// archive is where the files of a tar lie that may belong to an image.
type archive struct {
	file  *os.File
	files map[string]section
}

type section struct{ off, size int64 }

const (
	archiveFiles   = 4096 // files of an archive that are remembered
	archiveEntries = 8 << 20
	linkHops       = 8
)

// indexArchive reads the headers of a tar file. Symbolic links, by which older archives share layers, are resolved
// within it.
func indexArchive(f *os.File) (*archive, error) {
	a := &archive{file: f, files: map[string]section{}}
	links := map[string]string{}
	r := tar.NewReader(f)
	for range archiveEntries {
		h, err := r.Next()
		if err == io.EOF {
			a.resolve(links)
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		name := filepath.Clean(h.Name)
		if len(name) > 256 || len(a.files)+len(links) >= archiveFiles {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.files[name] = section{off, h.Size}
		case tar.TypeSymlink:
			links[name] = filepath.Join(filepath.Dir(name), h.Linkname)
		}
	}
	return nil, &LimitError{Name: "entries", Limit: archiveEntries}
}

func (a *archive) resolve(links map[string]string) {
	for name, target := range links {
		for range linkHops {
			if s, ok := a.files[target]; ok {
				a.files[name] = s
				break
			}
			target = links[target]
		}
	}
}

func (a *archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

// open implements blobs.
func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	s, ok := a.files[filepath.Clean(name)]
	if !ok {
		return nil, 0, fmt.Errorf("no file %.256q in the archive: %w", name, ErrSource)
	}
	return io.NopCloser(io.NewSectionReader(a.file, s.off, s.size)), s.size, nil
}
