package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// Image is one image of the store, as it was when it was asked for. Values come from Store's methods.
type Image struct {
	Name     string      `json:"name"`             // the name asked for, else the first of Names; "" without any
	Names    []string    `json:"names"`            // all names, sorted
	Digest   string      `json:"digest"`           // of the image: its files, configuration and users; "sha256:HEX"
	Rootfs   string      `json:"rootfs"`           // digest of the EROFS file; images may share it
	Path     string      `json:"path"`             // of the EROFS file; see Open
	Size     int64       `json:"size"`             // bytes of the EROFS file, a multiple of Alignment
	Created  time.Time   `json:"created,omitzero"` // as the image says; zero for a plain tar or directory
	Updated  time.Time   `json:"updated,omitzero"` // when the name was last pulled or imported
	Source   string      `json:"source"`           // where it came from
	Manifest string      `json:"manifest"`         // digest of the manifest it was made from; "" without one
	Platform string      `json:"platform"`         // for example "linux/amd64"
	Config   ImageConfig `json:"config"`

	passwd, group string
}

// ImageConfig is how the image wants to be run: the part of the OCI image configuration that applies here.
type ImageConfig struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"` // NAME=VALUE
	WorkingDir string            `json:"working_dir,omitempty"`
	User       string            `json:"user,omitempty"` // for LookupUser
	Labels     map[string]string `json:"labels,omitempty"`
	StopSignal string            `json:"stop_signal,omitempty"`
}

// Alignment is what the size of every EROFS file is a multiple of, in bytes, so that it can be mapped into a
// guest as it is.
const Alignment = 2 << 20

// Open opens the EROFS file for reading. While the file or any duplicate of its descriptor is open, in whatever
// process, the image is in use: Remove refuses it unless forced, and Prune leaves it alone. ErrNotFound if
// the image was removed meanwhile.
func (i Image) Open() (*os.File, error) {
	f, err := OpenFile(i.Path)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.title(), err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != i.Size {
		err = fmt.Errorf("%d bytes instead of %d: %w", info.Size(), i.Size, ErrDigest)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image %s: %w", i.title(), err)
	}
	return f, nil
}

// OpenFile is Image.Open for those who were handed only Image.Path, such as a sandbox that starts again later.
func OpenFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %s: %w", path, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if err := hold(f, path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Hold marks an open EROFS file as in use, as Image.Open does, for those who opened it themselves.
func Hold(f *os.File) error { return hold(f, f.Name()) }

// hold marks f as in use. Whoever deletes takes the exclusive lock for an instant first, so waiting is short.
func hold(f *os.File, path string) error {
	if err := flock.Take(f, unix.LOCK_SH); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(info, now) {
		return fmt.Errorf("open %s: %w", path, ErrNotFound)
	}
	return nil
}

// title is how the image is called in messages.
func (i Image) title() string {
	if i.Name != "" {
		return i.Name
	}
	return i.Digest
}
