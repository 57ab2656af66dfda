package rootfs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"spore/rootfs"
)

// twoLayers is an image of two gzip layers, the upper of which removes a file of the lower.
func twoLayers(t testing.TB) v1.Image {
	t.Helper()
	return image(t, types.DockerLayer, gzipped(t, tarBytes(t, append(plain, file{"removed", "x"})...)),
		gzipped(t, tarBytes(t, file{".wh.removed", ""}, file{"added", "upper"})))
}

// image puts layers together and configures them.
func image(t testing.TB, media types.MediaType, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, data := range layers {
		l, err := tarball.LayerFromReader(bytes.NewReader(data), tarball.WithMediaType(media))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{
		Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"PATH=/bin"},
		WorkingDir: "/home/app", User: "app", Labels: map[string]string{"k": "v"},
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func saved(t testing.TB, img v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func ociLayout(t testing.TB, images ...v1.Image) string {
	t.Helper()
	path := t.TempDir()
	l, err := layout.Write(path, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := l.AppendImage(img); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// packDir is the directory as a tar file.
func packDir(t testing.TB, dir string) []byte {
	t.Helper()
	var files []file
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files = append(files, file{rel, string(data)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarBytes(t, files...)
}

func zstdPacked(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// TestSources imports the same image from every kind of source.
func TestSources(t *testing.T) {
	img := twoLayers(t)
	layoutDir, archive := ociLayout(t, img), saved(t, img)
	archiveBytes, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	root := tarBytes(t, append(plain, file{"added", "upper"})...)
	dir := t.TempDir()
	for _, f := range append(plain, file{"added", "upper"}) {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f.name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, rootfs.Config{})
	for _, c := range []struct {
		name, source, kind string
		configured         bool
	}{
		{"layout", "oci:" + layoutDir, "oci", true},
		{"layout detected", layoutDir, "oci", true},
		{"saved", "docker-archive:" + archive, "docker-archive", true},
		{"saved detected", archive, "docker-archive", true},
		{"saved and packed", write(t, "saved.tar.gz", gzipped(t, archiveBytes)), "docker-archive", true},
		{"layout in a tar", write(t, "layout.tar", packDir(t, layoutDir)), "docker-archive", true},
		{"tar", "tar:" + write(t, "root.tar", root), "tar", false},
		{"tar detected", write(t, "root.tar", root), "tar", false},
		{"tar.gz", "tar:" + write(t, "root.tar.gz", gzipped(t, root)), "tar", false},
		{"tar.gz detected", write(t, "root.tgz", gzipped(t, root)), "tar", false},
		{"tar.zst", "tar:" + write(t, "root.tar.zst", zstdPacked(t, root)), "tar", false},
		{"directory", "dir:" + dir, "dir", false},
		{"directory detected", dir, "dir", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p recorder
			got, err := s.Import(t.Context(), c.source, "app:1", rootfs.ImportOptions{Progress: &p})
			if err != nil {
				t.Fatal(err)
			}
			files := contents(t, got)
			if files["added"].Content != "upper" || len(files["bin/sh"].Content) != 5000 || files["removed"].Mode != 0 {
				t.Errorf("wrong files: %d", len(files))
			}
			if !strings.HasPrefix(got.Source, c.kind+":/") || got.Name != "app:1" || got.Platform != "linux/amd64" {
				t.Errorf("%+v", got)
			}
			if c.configured != (len(got.Config.Cmd) == 2 && got.Config.User == "app" && got.Config.Labels["k"] == "v") {
				t.Errorf("configuration: %+v", got.Config)
			}
			if u, err := got.LookupUser("app"); err != nil || u.UID != 1000 {
				t.Errorf("user: %+v, %v", u, err)
			}
			if p.finished(rootfs.PhaseWrite) != 1 {
				t.Errorf("steps: %+v", p.steps)
			}
		})
	}
}

// TestSameLayersSameImage: the image depends on layers and configuration only, not on where they came from.
func TestSameLayersSameImage(t *testing.T) {
	img := twoLayers(t)
	a, err := openStore(t, rootfs.Config{}).Import(t.Context(), ociLayout(t, img), "a", rootfs.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := openStore(t, rootfs.Config{}).Import(t.Context(), saved(t, img), "b", rootfs.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest != b.Digest || a.Rootfs != b.Rootfs {
		t.Errorf("%s and %s", a.Digest, b.Digest)
	}
}

func TestImportConfig(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	path := write(t, "root.tar", tarBytes(t, plain...))
	plainImage, err := s.Import(t.Context(), path, "a", rootfs.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := rootfs.ImageConfig{Cmd: []string{"/bin/sh"}}
	img, err := s.Import(t.Context(), path, "b", rootfs.ImportOptions{Config: &c})
	if err != nil {
		t.Fatal(err)
	}
	if img.Digest == plainImage.Digest || img.Path != plainImage.Path || img.Config.Cmd[0] != "/bin/sh" {
		t.Errorf("%+v", img)
	}
}

// TestIMG01BadSources: sources that are not what they should be, none of which may leave anything.
func TestIMG01BadSources(t *testing.T) {
	img := twoLayers(t)
	corrupt := func(glob string, change func([]byte) []byte) string {
		dir := ociLayout(t, img)
		paths, _ := filepath.Glob(filepath.Join(dir, glob))
		for _, p := range paths {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if data = change(data); data == nil {
				continue
			}
			if err := os.WriteFile(p, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	isGzip := func(b []byte) bool { return b[0] == 0x1f }
	outside := ociLayout(t, img)
	link(t, outside)
	otherLayer := gzipped(t, tarBytes(t, file{"evil", "x"}))
	fifo := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		name, source string
		want         error
	}{
		{"missing", fifo, os.ErrNotExist},
		{"device", "/dev/null", rootfs.ErrSource},
		{"registry", "docker://alpine", rootfs.ErrSource},
		{"no tar", write(t, "x", bytes.Repeat([]byte("no tar at all "), 100)), rootfs.ErrSource},
		{"no saved image", "docker-archive:" + write(t, "x", tarBytes(t, plain...)), rootfs.ErrSource},
		{"xz", "tar:" + write(t, "x", []byte("\xfd7zXZ\x00 and so on")), rootfs.ErrSource},
		{"empty layout", ociLayout(t), rootfs.ErrSource},
		{"two images", ociLayout(t, img, image(t, types.OCILayer, otherLayer)), rootfs.ErrSource},
		{"changed layer", corrupt("blobs/sha256/*", func(b []byte) []byte {
			if isGzip(b) {
				return otherLayer
			}
			return nil
		}), rootfs.ErrDigest},
		{"changed metadata", corrupt("blobs/sha256/*", func(b []byte) []byte {
			if isGzip(b) {
				return nil
			}
			return append(b, ' ')
		}), rootfs.ErrDigest},
		{"layout linked to the host", outside, nil},
		{"hostile layer", saved(t, image(t, types.DockerLayer, gzipped(t, tarBytes(t, file{"../../etc/cron.d/x", "x"})))), rootfs.ErrPath},
		{"cut layer", "tar:" + write(t, "x", tarBytes(t, plain...)[:3000]), rootfs.ErrHeader},
		{"cut gzip", "tar:" + write(t, "x", gzipped(t, tarBytes(t, plain...))[:60]), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, rootfs.Config{})
			_, err := s.Import(t.Context(), c.source, "x", rootfs.ImportOptions{})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if left := storeFiles(t, s); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// link replaces the layers of a layout by symbolic links to host files.
func link(t *testing.T, dir string) {
	t.Helper()
	secret := write(t, "secret", []byte("secret"))
	paths, _ := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	for _, p := range paths {
		if err := errors.Join(os.Remove(p), os.Symlink(secret, p)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIMG02Limits: compression bombs and too many layers.
func TestIMG02Limits(t *testing.T) {
	zeros := bytes.Repeat([]byte{0}, 8<<20)
	bomb := gzipped(t, append(tarBytes(t, plain...), zeros...))
	many := make([]v1.Descriptor, 600)
	diffIDs := make([]v1.Hash, len(many))
	for i := range diffIDs {
		diffIDs[i] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	}
	config, err := json.Marshal(v1.ConfigFile{RootFS: v1.RootFS{DiffIDs: diffIDs}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, source, limit string
		limits              rootfs.Limits
	}{
		{"gzip", "tar:" + write(t, "x", bomb), "size", rootfs.Limits{Size: 4 << 20}},
		{"gzip, detected", write(t, "x", bomb), "size", rootfs.Limits{Size: 4 << 20}},
		{"zstd", "tar:" + write(t, "x", zstdPacked(t, append(tarBytes(t, plain...), zeros...))), "size", rootfs.Limits{Size: 4 << 20}},
		{"entries", "tar:" + write(t, "x", tarBytes(t, plain...)), "entries", rootfs.Limits{Entries: 4}},
		{"layers", "oci:" + rawLayout(t, config, many), "layers", rootfs.Limits{}},
		{"configuration", "oci:" + rawLayout(t, bytes.Repeat([]byte(" "), 5<<20), nil), "manifest", rootfs.Limits{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, rootfs.Config{Limits: c.limits})
			_, err := s.Import(t.Context(), c.source, "x", rootfs.ImportOptions{})
			var limit *rootfs.LimitError
			if !errors.As(err, &limit) || limit.Name != c.limit {
				t.Errorf("%v, want the limit for %s", err, c.limit)
			}
			if left := storeFiles(t, s); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// rawLayout is a layout with a configuration and layer list of any kind.
func rawLayout(t *testing.T, config []byte, layers []v1.Descriptor) string {
	t.Helper()
	put := func(dir string, data []byte) v1.Descriptor {
		l := static.NewLayer(data, types.OCIUncompressedLayer)
		h, _ := l.Digest()
		if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", h.Hex), data, 0o644); err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{Digest: h, Size: int64(len(data))}
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := put(dir, config)
	c.MediaType = types.OCIConfigJSON
	for i := range layers {
		layers[i] = c
	}
	manifest, _ := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: c, Layers: layers})
	m := put(dir, manifest)
	m.MediaType = types.OCIManifestSchema1
	index, _ := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{m}})
	for name, data := range map[string][]byte{"index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
