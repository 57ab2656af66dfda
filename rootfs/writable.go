package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spore/internal/sparse"
)

// Bounds of a writable layer, in bytes.
const (
	MinWritable = 16 << 20
	MaxWritable = 4 << 40
)

// templateVersion changes with the arguments of mkfs, so that old templates are not used.
const templateVersion = 2

// NewWritable makes a new sparse file at path with an empty ext4 file system of size bytes (rounded up to 4 KiB;
// MinWritable to MaxWritable), for one sandbox to write to. The file must not exist yet; mode 0600; on
// error it does not exist. It takes about 200 KiB of disk at first, never more than size.
//
// The first file of a size is made by mkfs.ext4 and its data kept in the store as a template, from which all files
// are written in milliseconds, also where the store's file system knows nothing of holes. There is no journal: a layer is lost with its sandbox, and one that
// is kept after a crash of its guest is to be checked with e2fsck before it is mounted again. Copies share
// the template's UUID and directory hash seed: each is the only such file system in its guest, and a guest that
// makes names collide slows down only itself.
func (s *Store) NewWritable(ctx context.Context, path string, size int64) error {
	if size < MinWritable || size > MaxWritable {
		return fmt.Errorf("make writable layer: %d bytes, want %d MiB to %d GiB", size, MinWritable>>20, int64(MaxWritable)>>30)
	}
	size = (size + 4095) &^ 4095
	template, templateErr := s.template(ctx, size)
	if templateErr == nil {
		defer template.Close()
	}
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make writable layer: %w", err)
	}
	if templateErr == nil {
		err = sparse.Unpack(ctx, out, sparse.Whole(template), size)
	} else {
		// A store that cannot be written to, such as another machine's, has no new templates: the layer is then
		// formatted by itself.
		s.log.Debug("no template for a writable layer", "bytes", size, "err", templateErr)
		err = format(ctx, out, size)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("make writable layer %s: %w", path, err)
	}
	return nil
}

// format makes an empty ext4 file system of size bytes of an empty file.
func format(ctx context.Context, f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	return makeExt4(ctx, f)
}

// template opens the template of a size, making it if there is none.
func (s *Store) template(ctx context.Context, size int64) (*os.File, error) {
	path := filepath.Join(s.dir, "writable", fmt.Sprintf("%d-v%d.template", size, templateVersion))
	f, err := os.Open(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	lock, err := s.lockWork(ctx, path)
	if err != nil {
		return nil, err
	}
	defer lock.release()
	if f, err := os.Open(path); err == nil {
		return f, nil
	}
	if f, err = s.packedExt4(ctx, size); err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o444), f.Sync(), publish(f, path)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// packedExt4 formats a file of size bytes and returns what is in it, packed, as a file without a name.
func (s *Store) packedExt4(ctx context.Context, size int64) (*os.File, error) {
	disk, err := s.tempFile()
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	packed, err := s.tempFile()
	if err != nil {
		return nil, err
	}
	err = format(ctx, disk, size)
	if err == nil {
		err = sparse.Pack(ctx, packed, disk, size)
	}
	if err != nil {
		packed.Close()
		return nil, err
	}
	return packed, nil
}

// makeExt4 formats f. The file is all zero, which mkfs is told, so that neither it nor the guest's kernel, later
// and in the background, zeroes inode tables and fills the file.
func makeExt4(ctx context.Context, f *os.File) error {
	mkfs, err := findTool("mkfs.ext4")
	if err != nil {
		return fmt.Errorf("%w; it is in the package e2fsprogs", err)
	}
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-b", "4096",
		"-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg",
		"-E", "assume_storage_prezeroed=1,lazy_itable_init=1,nodiscard,root_owner=0:0", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.512s", mkfs, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// findTool looks also where PATH of an unprivileged user does not.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}
