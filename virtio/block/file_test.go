package block_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"spore/virtio/block"
)

func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func newFile(t testing.TB, path string, readOnly bool) *block.File {
	t.Helper()
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	b, err := block.NewFile(open(t, path, flags), readOnly)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBLK05_OnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(image(t, 512), link); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name, path string
		flags      int
		readOnly   bool
	}{
		{"directory", dir, os.O_RDONLY, true},
		{"fifo", fifo, os.O_RDWR | unix.O_NONBLOCK, false},
		{"character device", "/dev/zero", os.O_RDWR, false},
		{"symbolic link", link, unix.O_PATH | unix.O_NOFOLLOW, true},
		{"socket", socket, unix.O_PATH, true},
		{"path only", image(t, 512), unix.O_PATH, true},
		{"read-write for a read-only disk", image(t, 512), os.O_RDWR, true},
		{"write-only for a read-only disk", image(t, 512), os.O_WRONLY, true},
		{"read-only for a writable disk", image(t, 512), os.O_RDONLY, false},
		{"write-only for a writable disk", image(t, 512), os.O_WRONLY, false},
		{"append", image(t, 512), os.O_RDWR | os.O_APPEND, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := block.NewFile(open(t, c.path, c.flags), c.readOnly); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestBLK03_DescriptorCannotWrite(t *testing.T) {
	path := image(t, 4096)
	f := open(t, path, os.O_RDONLY)
	b, err := block.NewFile(f, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteAt([][]byte{{1}}, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("write: %v", err)
	}
	if _, err := unix.Pwrite(int(f.Fd()), []byte{1}, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("pwrite: %v", err)
	}
	if err := b.Discard(0, 512); !errors.Is(err, unix.EBADF) {
		t.Errorf("discard: %v", err)
	}
	if err := b.WriteZeroes(0, 512, false); !errors.Is(err, unix.EBADF) {
		t.Errorf("write-zeroes: %v", err)
	}
	if err := b.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
}

func TestFileMovesBytes(t *testing.T) {
	for _, dir := range []string{"", "/dev/shm"} {
		t.Run("in "+dir, func(t *testing.T) {
			f, err := os.CreateTemp(dir, "disk")
			if err != nil {
				t.Skip(err)
			}
			defer f.Close()
			defer os.Remove(f.Name())
			if err := f.Truncate(1 << 20); err != nil {
				t.Fatal(err)
			}
			b, err := block.NewFile(f, false)
			if err != nil {
				t.Fatal(err)
			}
			checkFile(t, b)
		})
	}
}

func checkFile(t *testing.T, b *block.File) {
	// More buffers than one system call takes, some empty.
	var bufs, back [][]byte
	for i := range 600 {
		bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, i%7*100))
		back = append(back, make([]byte, len(bufs[i])))
	}
	all := bytes.Join(bufs, nil)
	move(t, bufs, func(p [][]byte, off int64) (int, error) { return b.WriteAt(p, 100+off) })
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	move(t, back, func(p [][]byte, off int64) (int, error) {
		n, err := b.ReadAt(p, 100+off, true)
		if err == block.ErrAgain {
			n, err = b.ReadAt(p, 100+off, false)
		}
		return n, err
	})
	if !bytes.Equal(bytes.Join(back, nil), all) {
		t.Error("read back something else")
	}
	if n, err := b.ReadAt([][]byte{make([]byte, 10)}, b.Size(), false); n != 0 || err != nil {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	for name, zero := range map[string]func(off, n int64) error{
		"discard":            b.Discard,
		"write-zeroes":       func(off, n int64) error { return b.WriteZeroes(off, n, false) },
		"write-zeroes unmap": func(off, n int64) error { return b.WriteZeroes(off, n, true) },
	} {
		page := bytes.Repeat([]byte{0xaa}, 3*4096)
		if _, err := b.WriteAt([][]byte{page}, 0); err != nil {
			t.Fatal(err)
		}
		if err := zero(4096, 4096); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := zero(0, 0); err != nil {
			t.Errorf("%s of nothing: %v", name, err)
		}
		clear(page[4096:8192])
		got := make([]byte, len(page))
		if _, err := b.ReadAt([][]byte{got}, 0, false); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, page) {
			t.Errorf("%s changed something else, or nothing", name)
		}
	}
}

// move drives one direction to its end, as short counts allow.
func move(t *testing.T, bufs [][]byte, call func([][]byte, int64) (int, error)) {
	t.Helper()
	off := int64(0)
	for len(bufs) > 0 {
		n, err := call(bufs, off)
		if err != nil {
			t.Fatal(err)
		}
		off += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
		}
	}
}
