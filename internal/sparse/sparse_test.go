package sparse

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

const page = 4096

// file has a page of the letter at each place, a page each, and holes elsewhere.
func file(t *testing.T, pages int64, letters map[int64]byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(pages * page); err != nil {
		t.Fatal(err)
	}
	for at, letter := range letters {
		if _, err := f.WriteAt(bytes.Repeat([]byte{letter}, page), at*page); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// letters is what file was made from.
func letters(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	var s []byte
	for ; len(b) >= page; b = b[page:] {
		if b[0] == 0 {
			b[0] = '.'
		}
		s = append(s, b[0])
	}
	return string(s)
}

// holes is a file system for temporary files that knows holes.
var holes = testenv.Need{Name: "holes", Probe: func() error {
	f, err := os.CreateTemp("", "holes")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 1<<20); err != nil {
		return err
	}
	at, err := f.Seek(0, unix.SEEK_DATA)
	if err == nil && at == 0 {
		err = errors.New("the file system of the temporary directory does not know holes")
	}
	return err
}}

func TestExtents(t *testing.T) {
	testenv.Require(t, holes)
	f := file(t, 8, map[int64]byte{1: 'a', 2: 'b', 5: 'c', 7: 'd'})
	var got []Extent
	for e, err := range Extents(f, 8*page) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if want := []Extent{{page, 2 * page}, {5 * page, page}, {7 * page, page}}; !slices.Equal(got, want) {
		t.Errorf("extents %v, want %v", got, want)
	}
}

func TestCopy(t *testing.T) {
	testenv.Require(t, holes)
	for name, data := range map[string]map[int64]byte{
		"........": nil, "a..bc..d": {0: 'a', 3: 'b', 4: 'c', 7: 'd'}, "abcdefgh": {0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e', 5: 'f', 6: 'g', 7: 'h'},
	} {
		to := file(t, 0, nil)
		if _, err := Copy(t.Context(), to, file(t, 8, data), 8*page); err != nil {
			t.Fatal(err)
		}
		if got := letters(t, to); got != name {
			t.Errorf("%s is copied as %s", name, got)
		}
	}
}

// TestCopyLeavesZerosOut copies what is not zero, at both ends of what is read at once too, and of a file that is no whole number of pages.
func TestCopyLeavesZerosOut(t *testing.T) {
	testenv.Require(t, holes)
	want := make([]byte, 200*page+5)
	for _, at := range []int{3, 63, 64, 65, 127, 199, 200} {
		want[at*page+4] = byte(at)
	}
	from, to := file(t, 0, nil), file(t, 0, nil)
	if _, err := from.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), to, from, int64(len(want))); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := to.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy is another: %v", err)
	}
	var data int64
	for e, err := range Extents(to, int64(len(want))) {
		if err != nil {
			t.Fatal(err)
		}
		data += e.Length
	}
	if data > 7*page {
		t.Errorf("%d bytes are copied, want seven pages at most", data)
	}
}

func TestPackAndUnpack(t *testing.T) {
	from := file(t, 16, map[int64]byte{1: 'a', 2: 'b', 15: 'c'})
	packed, to := file(t, 0, nil), file(t, 0, nil)
	if err := Pack(t.Context(), packed, from, 16*page); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), to, Whole(packed), 16*page); err != nil {
		t.Fatal(err)
	}
	if got, want := letters(t, to), letters(t, from); got != want {
		t.Errorf("unpacked %s, want %s", got, want)
	}
	size, err := packed.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	longer := io.MultiReader(Whole(packed), strings.NewReader("x"))
	if err := Unpack(t.Context(), file(t, 0, nil), longer, 16*page); !errors.Is(err, ErrDamaged) {
		t.Errorf("unpacked a byte too many: %v, want ErrDamaged", err)
	}
	for cut := range size { // every shorter file is damaged
		if cut%997 != 0 && cut != size-1 {
			continue
		}
		if err := packed.Truncate(cut); err != nil {
			t.Fatal(err)
		}
		if err := Unpack(t.Context(), file(t, 0, nil), Whole(packed), 16*page); err == nil {
			t.Errorf("unpacked %d bytes of %d", cut, size)
		}
		packed.Truncate(0)
		if err := Pack(t.Context(), &rewinder{packed, 0}, from, 16*page); err != nil {
			t.Fatal(err)
		}
	}
}

// rewinder writes from the beginning, wherever the descriptor stands.
type rewinder struct {
	f   *os.File
	off int64
}

func (r *rewinder) Write(p []byte) (int, error) {
	n, err := r.f.WriteAt(p, r.off)
	r.off += int64(n)
	return n, err
}
