package block

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxVector is the most buffers handed to one system call; a request with more takes several.
const maxVector = 256

// zeroChunk is the length of the zeros written at once where the file system cannot make zeros itself.
const zeroChunk = 64 << 10

// File is the Backend over a raw image in a regular file. There is no image format to detect: sector n of the disk
// is at byte 512·n of the file, whatever the guest writes there. It opens nothing.
type File struct {
	f       *os.File // kept alive for fd
	fd      int
	size    int64
	inline  bool      // reading never waits for a disk: nowait is pointless
	vectors sync.Pool // of *vector: the scratch space of one system call

	noNowait    atomic.Bool // the file system knows no RWF_NOWAIT
	noZeroRange atomic.Bool // … no FALLOC_FL_ZERO_RANGE
	noPunch     atomic.Bool // … no FALLOC_FL_PUNCH_HOLE
}

type vector [maxVector]unix.Iovec

// NewFile makes a Backend of f, which it keeps and the caller closes once no device uses it. f must be a regular file opened
// O_RDONLY when readOnly, so that the kernel refuses what the guest must not do, and O_RDWR when not, without
// O_APPEND (which ignores offsets), O_DIRECT (guest buffers have any alignment) and O_PATH.
func NewFile(f *os.File, readOnly bool) (*File, error) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat disk: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("open disk: not a regular file (mode %#o)", st.Mode)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("get flags of disk: %w", err)
	}
	want := unix.O_RDWR
	if readOnly {
		want = unix.O_RDONLY
	}
	if flags&unix.O_ACCMODE != want {
		return nil, fmt.Errorf("open disk: access mode is %d, want %d", flags&unix.O_ACCMODE, want)
	}
	if bad := flags & (unix.O_APPEND | unix.O_DIRECT | unix.O_PATH); bad != 0 {
		return nil, fmt.Errorf("open disk: flags %#x are not allowed", bad)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, fmt.Errorf("stat file system of disk: %w", err)
	}
	b := &File{f: f, fd: fd, size: st.Size, inline: fs.Type == unix.TMPFS_MAGIC}
	b.vectors.New = func() any { return new(vector) }
	return b, nil
}

// Size is the length of the file when it was given.
func (b *File) Size() int64 { return b.size }

// ReadAt is preadv2(2).
func (b *File) ReadAt(bufs [][]byte, off int64, nowait bool) (int, error) {
	flags := 0
	if nowait && !b.inline {
		if b.noNowait.Load() {
			return 0, ErrAgain
		}
		flags = unix.RWF_NOWAIT
	}
	n, err := b.call(unix.SYS_PREADV2, bufs, off, flags)
	switch {
	case err == nil || flags == 0:
		return n, err
	case err == unix.EAGAIN:
		return 0, ErrAgain
	case err == unix.EOPNOTSUPP || err == unix.ENOSYS:
		b.noNowait.Store(true)
		return 0, ErrAgain
	}
	return n, err
}

// WriteAt is pwritev2(2).
func (b *File) WriteAt(bufs [][]byte, off int64) (int, error) {
	return b.call(unix.SYS_PWRITEV2, bufs, off, 0)
}

// call runs one system call over as many of bufs as fit a vector.
func (b *File) call(nr uintptr, bufs [][]byte, off int64, flags int) (int, error) {
	v := b.vectors.Get().(*vector)
	defer b.vectors.Put(v)
	n := 0
	for _, p := range bufs {
		if len(p) == 0 {
			continue
		}
		if n == len(v) {
			break
		}
		v[n].Base = &p[0]
		v[n].SetLen(len(p))
		n++
	}
	for {
		done, err := vectored(nr, b.fd, v[:n], off, flags)
		if err != unix.EINTR {
			return done, err
		}
	}
}

// Flush is fdatasync(2).
func (b *File) Flush() error {
	for {
		if err := unix.Fdatasync(b.fd); err != unix.EINTR {
			return err
		}
	}
}

// Discard punches a hole. A file system that cannot is not asked again: a discard is advice.
func (b *File) Discard(off, n int64) error {
	err := b.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, &b.noPunch)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// WriteZeroes zeroes a range, or punches a hole if that is allowed or all the file system can do, or writes zeros.
func (b *File) WriteZeroes(off, n int64, unmap bool) error {
	err := error(unix.EOPNOTSUPP)
	if !unmap {
		err = b.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n, &b.noZeroRange)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = b.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, &b.noPunch)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, min(zeroChunk, n))
	for n > 0 {
		done, err := b.WriteAt([][]byte{zeros[:min(int64(len(zeros)), n)]}, off)
		if err != nil {
			return err
		}
		if done == 0 {
			return unix.EIO
		}
		off, n = off+int64(done), n-int64(done)
	}
	return nil
}

// allocate is fallocate(2), remembering in unsupported that the file system has no such mode.
func (b *File) allocate(mode uint32, off, n int64, unsupported *atomic.Bool) error {
	if n == 0 {
		return nil
	}
	if unsupported.Load() {
		return unix.EOPNOTSUPP
	}
	for {
		err := unix.Fallocate(b.fd, mode, off, n)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EOPNOTSUPP {
			unsupported.Store(true)
		}
		return err
	}
}
