package rootfs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const recordVersion = 1

// record is what images/HEX.json holds. It never changes: its name is its digest.
type record struct {
	Version  int         `json:"version"`
	Rootfs   string      `json:"rootfs"` // SHA-256 of the EROFS file, hex
	Size     int64       `json:"size"`   // bytes of it
	Created  time.Time   `json:"created,omitzero"`
	Platform string      `json:"platform"`
	Config   ImageConfig `json:"config"`
	Passwd   string      `json:"passwd,omitempty"` // /etc/passwd of the image
	Group    string      `json:"group,omitempty"`  // /etc/group of the image
}

// names is what names.json holds.
type names struct {
	Version int            `json:"version"`
	Names   map[string]tag `json:"names"`
}

// tag is what is known of an image under one name.
type tag struct {
	Image    string    `json:"image"`              // hex
	Source   string    `json:"source"`             // where it came from
	Manifest string    `json:"manifest,omitempty"` // digest of the manifest it came from
	Updated  time.Time `json:"updated"`
}

func (s *Store) readNames() (names, error) {
	n := names{Version: recordVersion, Names: map[string]tag{}}
	data, err := os.ReadFile(s.namesPath())
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, fmt.Errorf("read image names: %w", err)
	}
	if err := json.Unmarshal(data, &n); err != nil {
		return n, fmt.Errorf("read image names %s: %w", s.namesPath(), err)
	}
	if n.Version != recordVersion {
		return n, fmt.Errorf("read image names %s: version %d is not %d", s.namesPath(), n.Version, recordVersion)
	}
	if n.Names == nil {
		n.Names = map[string]tag{}
	}
	return n, nil
}

// writeNames needs the store lock.
func (s *Store) writeNames(n names) error {
	data, err := json.MarshalIndent(n, "", "\t")
	if err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	if err := replaceFile(s.namesPath(), data); err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	return nil
}

// writeRecord stores r and returns its digest. It needs the store lock.
func (s *Store) writeRecord(r record) (digest string, err error) {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return "", fmt.Errorf("write image record: %w", err)
	}
	sum := sha256.Sum256(data)
	digest = hex.EncodeToString(sum[:])
	f, err := s.tempFile()
	if err != nil {
		return "", fmt.Errorf("write image record: %w", err)
	}
	defer f.Close()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o444), f.Sync()); err != nil {
		return "", fmt.Errorf("write image record: %w", err)
	}
	return digest, publish(f, s.recordPath(digest))
}

// image reads the record of one image. ErrNotFound if there is none.
func (s *Store) image(digest string, n names) (Image, error) {
	path := s.recordPath(digest)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("image %.12s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return Image{}, fmt.Errorf("read image record: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
		return Image{}, fmt.Errorf("read image record %s: %w", path, ErrDigest)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return Image{}, fmt.Errorf("read image record %s: %w", path, err)
	}
	img := Image{
		Digest: "sha256:" + digest, Rootfs: "sha256:" + r.Rootfs, Path: s.blobPath(r.Rootfs), Size: r.Size,
		Created: r.Created, Platform: r.Platform, Config: r.Config, passwd: r.Passwd, group: r.Group,
	}
	for _, nm := range slices.Sorted(maps.Keys(n.Names)) {
		if n.Names[nm].Image == digest {
			img.Names = append(img.Names, nm)
		}
	}
	if len(img.Names) > 0 {
		first := n.Names[img.Names[0]]
		img.Name, img.Source, img.Manifest, img.Updated = img.Names[0], first.Source, first.Manifest, first.Updated
	}
	return img, nil
}

// digests lists the images, hex, sorted.
func (s *Store) digests() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []string
	for _, e := range entries {
		if digest, ok := strings.CutSuffix(e.Name(), ".json"); ok && len(digest) == 2*sha256.Size {
			list = append(list, digest)
		}
	}
	return list, nil
}
