package snapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"spore/internal/sparse"
)

// An exported snapshot is a zstd-compressed tar archive of the manifest, its signature, the state, the memory without its
// holes, and the disk, in this order: whoever reads it knows first whether the signer is trusted, and reads no further if not.
// Of an encrypted one the wrapped key follows.
var exportedFirst = []string{manifestFile, signatureFile}

// Export writes a snapshot to w. It is verified first: what is damaged is not passed on.
func (s *Store) Export(ctx context.Context, m *Manifest, w io.Writer) error {
	d, err := s.admitAny(ctx, m)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	z, err := zstd.NewWriter(w)
	if err != nil {
		return fmt.Errorf("export snapshot %s: %w", m.Ref(), err)
	}
	t := tar.NewWriter(z)
	for _, name := range append(exportedFirst[:len(exportedFirst):len(exportedFirst)], m.parts()...) {
		if err := exportFile(ctx, t, d, name); err != nil {
			z.Close()
			return fmt.Errorf("export snapshot %s: %s: %w", m.Ref(), name, err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return fmt.Errorf("export snapshot %s: %w", m.Ref(), err)
	}
	return nil
}

func exportFile(ctx context.Context, t *tar.Writer, d *Dormant, name string) error {
	f, err := d.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if name == memoryFile {
		if size, err = sparse.PackedSize(f, st.Size()); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}); err != nil {
		return err
	}
	if name == memoryFile {
		return sparse.Pack(ctx, t, f, st.Size())
	}
	_, err = io.Copy(t, f)
	return err
}

// Import reads what Export wrote. Nothing but the manifest is read before its signature is that of a trusted key, and
// nothing appears in the store before all is what was signed.
func (s *Store) Import(ctx context.Context, r io.Reader) (*Manifest, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", err)
	}
	defer z.Close()
	p, err := s.Begin()
	if err != nil {
		return nil, err
	}
	defer p.Discard()
	m, err := s.receive(ctx, tar.NewReader(z), p)
	if err != nil {
		return nil, fmt.Errorf("import snapshot: %w", err)
	}
	return m, nil
}

// receive fills the directory of a pending snapshot from an archive and publishes it.
func (s *Store) receive(ctx context.Context, t *tar.Reader, p *Pending) (*Manifest, error) {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range exportedFirst {
		if err := receiveFile(ctx, t, p.Dir, name, maxManifest); err != nil {
			return nil, err
		}
	}
	m, err := readManifest(p.Dir, "", s.keys)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(s.path(m.ID)); err == nil {
		return nil, fmt.Errorf("snapshot %s is here already", m.ID)
	}
	for _, name := range m.parts() {
		if err := receiveFile(ctx, t, p.Dir, name, m.Parts[name].Size); err != nil {
			return nil, err
		}
	}
	if _, err := t.Next(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows its last file", ErrDamaged)
	}
	if err := m.admit(ctx, &Dormant{Spec: m.Spec, dir: p.Dir}, s.keys); err != nil {
		return nil, err
	}
	if err := writeSpec(p.Dir, m.Spec); err != nil {
		return nil, err
	}
	return m, s.publish(p.Dir, m, true)
}

// receiveFile writes the next file of an archive, which must have that name and at most limit bytes.
func receiveFile(ctx context.Context, t *tar.Reader, dir, name string, limit int64) error {
	head, err := t.Next()
	if err != nil {
		return fmt.Errorf("%w: %s is missing: %w", ErrDamaged, name, err)
	}
	if head.Name != name || head.Typeflag != tar.TypeReg {
		return fmt.Errorf("%w: %.64q where %s should be", ErrDamaged, head.Name, name)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if name == memoryFile {
		err = sparse.Unpack(ctx, f, t, limit)
	} else if head.Size > limit {
		err = fmt.Errorf("%w: %s has %d bytes, at most %d", ErrDamaged, name, head.Size, limit)
	} else {
		_, err = io.Copy(f, t)
	}
	return errors.Join(err, f.Close())
}
