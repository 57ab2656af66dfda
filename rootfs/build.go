package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"spore/internal/contextio"
	"spore/rootfs/erofs"
	"spore/rootfs/layer"
)

const (
	accountsMax = 1 << 20 // bytes of /etc/passwd or /etc/group that are kept
	warningsMax = 32
)

// builder makes one image out of one source.
type builder struct {
	store    *Store
	source   *source
	progress Progress
	warnings atomic.Int32
}

// build writes the EROFS file of a source and returns it, still without a name, with its record.
func (b *builder) build(ctx context.Context) (*os.File, record, error) {
	f, err := b.store.tempFile()
	if err != nil {
		return nil, record{}, err
	}
	r, err := b.write(ctx, f)
	if err != nil {
		f.Close()
		return nil, record{}, err
	}
	return f, r, nil
}

func (b *builder) write(ctx context.Context, f *os.File) (record, error) {
	out := erofs.NewWriter(f)
	tree := layer.NewTree(out, b.store.limits, b.warn)
	for i := range b.source.layers {
		l := &b.source.layers[i]
		var err error
		if l.dir != nil {
			err = tree.ApplyDir(ctx, l.dir)
		} else {
			err = b.apply(ctx, tree, l)
		}
		if err != nil {
			return record{}, fmt.Errorf("layer %d of %d: %w", i+1, len(b.source.layers), err)
		}
	}
	step := Step{ID: shortID(b.source.text), Phase: PhaseWrite, Total: out.Written()}
	b.progress.Update(step)
	size, err := out.Finish(tree.Root(), Alignment)
	if err != nil {
		return record{}, fmt.Errorf("write image: %w", err)
	}
	r := record{Version: recordVersion, Size: size, Platform: b.source.platform}
	if r.Passwd, err = readAccounts(f, tree.Find("/etc/passwd")); err != nil {
		return record{}, err
	}
	if r.Group, err = readAccounts(f, tree.Find("/etc/group")); err != nil {
		return record{}, err
	}
	if r.Rootfs, err = seal(ctx, f, size); err != nil {
		return record{}, fmt.Errorf("write image: %w", err)
	}
	b.describe(&r)
	step.Done, step.Total, step.Finished = size, size, true
	b.progress.Update(step)
	return r, nil
}

func (b *builder) warn(message string) {
	b.store.log.Debug("image", "source", b.source.text, "warning", message)
	if n := b.warnings.Add(1); n < warningsMax {
		b.progress.Warn(message)
	} else if n == warningsMax {
		b.progress.Warn("more was left out")
	}
}

// apply flattens one stream over the tree and checks that it was the one announced.
func (b *builder) apply(ctx context.Context, tree *layer.Tree, l *sourceLayer) error {
	raw, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	counted := newCountingReader(raw, Step{ID: shortID(l.id), Phase: PhaseUnpack, Total: l.size}, b.progress)
	plain, err := decompress(counted, b.store.limits.Ratio)
	if err != nil {
		return err
	}
	defer plain.Close()
	if l.diffID == (v1.Hash{}) {
		err = tree.Apply(ctx, plain)
	} else {
		sum := sha256.New()
		err = tree.Apply(ctx, io.TeeReader(plain, sum))
		if got := hex.EncodeToString(sum.Sum(nil)); err == nil && (l.diffID.Algorithm != "sha256" || got != l.diffID.Hex) {
			err = fmt.Errorf("unpacked layer is sha256:%s, not %s: %w", got, l.diffID, ErrDigest)
		}
	}
	if err != nil {
		return err
	}
	counted.finish()
	return nil
}

// describe copies what applies of the image's configuration.
func (b *builder) describe(r *record) {
	c := b.source.config
	if c == nil {
		return
	}
	if t := c.Created.Time; !t.IsZero() && t.Year() >= 1 && t.Year() <= 9999 {
		r.Created = t.UTC().Truncate(time.Second)
	}
	r.Config = ImageConfig{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, WorkingDir: c.Config.WorkingDir,
		User: c.Config.User, Labels: c.Config.Labels, StopSignal: c.Config.StopSignal,
	}
}

// readAccounts is the text of an account file; "" if there is none or it is absurdly large.
func readAccounts(f io.ReaderAt, n *erofs.Inode) (string, error) {
	if n == nil || n.Type() != erofs.TypeRegular || n.Size > accountsMax {
		return "", nil
	}
	if n.Inline != nil {
		return string(n.Inline), nil
	}
	data := make([]byte, n.Size)
	if _, err := f.ReadAt(data, int64(n.Block)*erofs.BlockSize); err != nil {
		return "", fmt.Errorf("read accounts: %w", err)
	}
	return string(data), nil
}

// seal makes the finished file read-only and durable, and returns its SHA-256 in hex.
func seal(ctx context.Context, f *os.File, size int64) (string, error) {
	sum := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, contextio.Reader(ctx, io.NewSectionReader(f, 0, size)), make([]byte, reportEvery))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err := errors.Join(err, f.Chmod(0o444), f.Sync()); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func shortID(id string) string {
	if len(id) == 2*sha256.Size {
		return id[:12]
	}
	return id
}
