package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/rootfs/erofs"
	"spore/rootfs/erofs/erofstest"
	"spore/rootfs/layer"
)

// fuzzLimits keep one execution short.
var fuzzLimits = layer.Limits{Entries: 200, Size: 128 << 10, Metadata: 256 << 10, Steps: 10_000}

// memoryFile is an image file that costs no disk.
func memoryFile(t testing.TB) *os.File {
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "image")
}

// judge flattens layers and holds the result against what must always be true: an error, or an image within the
// limits that another implementation can read whole.
func judge(t *testing.T, layers ...[]byte) {
	f := memoryFile(t)
	defer f.Close()
	w := erofs.NewWriter(f)
	tree := layer.NewTree(w, fuzzLimits, nil)
	for _, l := range layers {
		if err := tree.Apply(context.Background(), bytes.NewReader(l)); err != nil {
			if w.Written() > fuzzLimits.Size {
				t.Fatalf("%d bytes written, then: %v", w.Written(), err)
			}
			return
		}
	}
	size, err := w.Finish(tree.Root(), erofs.BlockSize)
	if err != nil {
		t.Fatalf("a tree that was built cannot be written: %v", err)
	}
	if size > fuzzLimits.Size+fuzzLimits.Metadata {
		t.Fatalf("image of %d bytes", size)
	}
	all, err := erofstest.Read(f)
	if err != nil {
		t.Fatalf("read image back: %v", err)
	}
	if len(all) > fuzzLimits.Entries+1 {
		t.Fatalf("%d entries", len(all))
	}
}

// FuzzOCILayer feeds bytes as a tar file, with the checksums of all its blocks mended so that changes to headers
// get past the archive's own check. Runs of zeros, which make up most of a tar file, are packed in the input.
func FuzzOCILayer(f *testing.F) {
	for _, seed := range [][]byte{
		archive(f, directory("d"), regular("d/f", "content"), symlink("l", "d"), hardlink("l/h", "d/f")),
		archive(f, regular("a", strings.Repeat("x", 100)), whiteout(".wh.a"), whiteout(".wh..wh..opq")),
		archive(f, tar.Header{Typeflag: tar.TypeReg, Name: "f", Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": "v"}}),
		archive(f, regular(strings.Repeat("long/", 60)+"f", "GNU or PAX name")),
		sparseArchive(f, 20_000),
	} {
		f.Add(packZeros(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = unpackZeros(data)
		for off := 0; off+512 <= len(data); off += 512 {
			if block := data[off : off+512]; block[0] != 0 && bytes.Equal(block[257:262], []byte("ustar")) {
				repairChecksum(block)
			}
		}
		judge(t, data)
	})
}

// packZeros writes each run of up to 256 zeros as a zero and its length less one.
func packZeros(data []byte) (packed []byte) {
	for len(data) > 0 {
		packed = append(packed, data[0])
		n := 1
		if data[0] == 0 {
			for n < 256 && n < len(data) && data[n] == 0 {
				n++
			}
			packed = append(packed, byte(n-1))
		}
		data = data[n:]
	}
	return packed
}

func unpackZeros(packed []byte) (data []byte) {
	const most = 64 << 10
	for i := 0; i < len(packed) && len(data) < most; i++ {
		data = append(data, packed[i])
		if packed[i] == 0 && i+1 < len(packed) {
			i++
			data = append(data, make([]byte, packed[i])...)
		}
	}
	return data
}

// script reads layers out of bytes: a few bytes an entry, names out of a small set so that entries meet.
type script struct{ data []byte }

func (s *script) next(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	b := int(s.data[0])
	s.data = s.data[1:]
	return b % n
}

func (s *script) name() string {
	parts := []string{"a", "b", "c", "d", ".wh.a", ".wh.b", ".wh..wh..opq", ".", "..", "/", "a/b", "b/c"}
	var path []string
	for range 1 + s.next(4) {
		path = append(path, parts[s.next(len(parts))])
	}
	return strings.Join(path, "/")
}

func (s *script) layer() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range 1 + s.next(12) {
		h := tar.Header{Name: s.name(), Mode: int64(s.next(256)) * 33, Format: tar.FormatPAX}
		content := ""
		switch s.next(8) {
		case 0, 1, 2:
			h.Typeflag = tar.TypeDir
		case 3:
			h.Typeflag, h.Linkname = tar.TypeSymlink, s.name()
		case 4:
			h.Typeflag, h.Linkname = tar.TypeLink, s.name()
		case 5:
			h.Typeflag = tar.TypeFifo
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", s.next(256)*20)}
		default:
			h.Typeflag = tar.TypeReg
			content = strings.Repeat(fmt.Sprint(s.next(10)), s.next(256)*s.next(40))
			h.Size = int64(len(content))
		}
		if w.WriteHeader(&h) == nil {
			io.WriteString(w, content)
		}
	}
	w.Close()
	return b.Bytes()
}

// FuzzLayers puts valid archives over one another.
func FuzzLayers(f *testing.F) {
	f.Add([]byte("\x02\x0c\x01\x01\x00\x00\x00\x03\x02\x01\x00\x01\x00\x06\x05\x10\x20\x00\x04\x00\x03\x04\x01\x01"))
	f.Add([]byte("layers over layers over layers over layers over layers"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &script{data}
		var layers [][]byte
		for range 1 + s.next(4) {
			layers = append(layers, s.layer())
		}
		judge(t, layers...)
	})
}
