package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"spore/rootfs/erofs"
	"spore/rootfs/erofs/erofstest"
)

const align = 2 << 20

func newFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func dir(children map[string]*erofs.Inode) *erofs.Inode {
	return &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: children}
}

func file(t testing.TB, w *erofs.Writer, content string) *erofs.Inode {
	t.Helper()
	n := &erofs.Inode{Mode: erofs.TypeRegular | 0o644, Size: int64(len(content))}
	switch {
	case content == "":
	case len(content) <= erofs.InlineMax:
		n.Inline = []byte(content)
	default:
		block, err := w.Append(strings.NewReader(content), n.Size)
		if err != nil {
			t.Fatal(err)
		}
		n.Block = block
	}
	return n
}

func symlink(target string) *erofs.Inode {
	return &erofs.Inode{Mode: erofs.TypeSymlink | 0o777, Inline: []byte(target)}
}

func finish(t testing.TB, w *erofs.Writer, root *erofs.Inode) int64 {
	t.Helper()
	size, err := w.Finish(root, align)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// sample is a tree with something of everything.
func sample(t testing.TB, w *erofs.Writer) *erofs.Inode {
	t.Helper()
	big := strings.Repeat("0123456789abcdef", 100_000)
	hard := file(t, w, "linked")
	setuid := file(t, w, strings.Repeat("s", 5000))
	setuid.Mode = erofs.TypeRegular | 0o4755
	setuid.UID, setuid.GID, setuid.Mtime, setuid.MtimeNsec = 70000, 4294967294, -5, 999_999_999
	setuid.Xattrs = []erofs.Xattr{
		{Name: "user.two", Value: "2"},
		{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		{Name: "user.one", Value: ""},
	}
	many := map[string]*erofs.Inode{}
	for i := range 1000 {
		many[fmt.Sprintf("name-%d-%s", i, strings.Repeat("x", i%90))] = file(t, w, fmt.Sprint(i))
	}
	tmp := dir(nil)
	tmp.Mode = erofs.TypeDir | 0o1777
	return dir(map[string]*erofs.Inode{
		"!first": file(t, w, ""), "big": file(t, w, big), "setuid": setuid, "one": hard, "tmp": tmp,
		"deep":                        dir(map[string]*erofs.Inode{"er": dir(map[string]*erofs.Inode{"two": hard, "up": symlink("../../big")})}),
		"many":                        dir(many),
		"fifo":                        {Mode: erofs.TypeFIFO | 0o600},
		"long":                        symlink(strings.Repeat("t", erofs.TargetMax)),
		strings.Repeat("n", 255):      file(t, w, "longest name"),
		"\xff\xfe not UTF-8 \n":       file(t, w, "bytes"),
		"zeros":                       file(t, w, strings.Repeat("\x00", 3*erofs.BlockSize)+"end"),
		"block":                       file(t, w, strings.Repeat("b", erofs.BlockSize)),
		"inline-max":                  file(t, w, strings.Repeat("i", erofs.InlineMax)),
		"inline-max-and-one":          file(t, w, strings.Repeat("j", erofs.InlineMax+1)),
		"unusual directory\\ name \t": dir(nil),
	})
}

// TestRoundTrip reads everything back with the independent reader.
func TestRoundTrip(t *testing.T) {
	f := newFile(t)
	w := erofs.NewWriter(f)
	size := finish(t, w, sample(t, w))
	if info, err := f.Stat(); err != nil || info.Size() != size || size%align != 0 {
		t.Fatalf("file of %v bytes (%v), Finish said %d, alignment %d", info.Size(), err, size, align)
	}
	got := erofstest.MustRead(t, f)
	for path, want := range map[string]string{
		"big": strings.Repeat("0123456789abcdef", 100_000), "one": "linked", "deep/er/two": "linked",
		"zeros": strings.Repeat("\x00", 3*erofs.BlockSize) + "end", "!first": "", "many/name-91-x": "91",
		"inline-max-and-one": strings.Repeat("j", erofs.InlineMax+1),
	} {
		if e, ok := got[path]; !ok || e.Content != want {
			t.Errorf("%s: present %v, %d bytes, want %d", path, ok, len(e.Content), len(want))
		}
	}
	if a, b := got["one"], got["deep/er/two"]; a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard link: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
	if e := got["deep"]; e.Nlink != 3 {
		t.Errorf("directory with one subdirectory has %d links, want 3", e.Nlink)
	}
	e := got["setuid"]
	if e.Mode != fs.ModeSetuid|0o755 || e.UID != 70000 || e.GID != 4294967294 || e.Mtime != -5 || e.Nsec != 999_999_999 {
		t.Errorf("setuid: %v, owner %d:%d, time %d.%09d", e.Mode, e.UID, e.GID, e.Mtime, e.Nsec)
	}
	if len(e.Xattrs) != 3 || e.Xattrs["user.two"] != "2" || len(e.Xattrs["security.capability"]) != 20 {
		t.Errorf("attributes: %q", e.Xattrs)
	}
	if e := got["tmp"]; e.Mode != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("tmp: %v", e.Mode)
	}
	if e := got["long"]; len(e.Target) != erofs.TargetMax {
		t.Errorf("long link: %d bytes", len(e.Target))
	}
}

func TestDeterministic(t *testing.T) {
	var first []byte
	for range 3 {
		f := newFile(t)
		w := erofs.NewWriter(f)
		finish(t, w, sample(t, w))
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.Fatal("the same tree gave different bytes")
		}
	}
}

// TestFsck lets the reference implementation judge the image.
func TestFsck(t *testing.T) {
	testenvFsck(t)
	f := newFile(t)
	w := erofs.NewWriter(f)
	finish(t, w, sample(t, w))
	if out, err := exec.Command("fsck.erofs", "--extract", f.Name()).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// TestReplacedContentsAreSqueezedOut drops every other file before Finish.
func TestReplacedContentsAreSqueezedOut(t *testing.T) {
	f := newFile(t)
	w := erofs.NewWriter(f)
	r := rand.New(rand.NewPCG(1, 2))
	children := map[string]*erofs.Inode{}
	want := map[string]string{}
	live := int64(0)
	for i := range 60 {
		content := strings.Repeat(string(rune('a'+i%26)), erofs.InlineMax+1+r.IntN(200_000))
		if i%5 == 0 { // holes must move too
			content = strings.Repeat("\x00", len(content)-1) + "!"
		}
		n := file(t, w, content)
		if i%2 == 0 {
			name := fmt.Sprint(i)
			children[name], want[name] = n, content
			live += (n.Size + erofs.BlockSize - 1) / erofs.BlockSize * erofs.BlockSize
		}
	}
	if size, err := w.Finish(dir(children), erofs.BlockSize); err != nil || size > live+4*erofs.BlockSize {
		t.Fatalf("image of %d bytes for %d of contents (%v)", size, live, err)
	}
	got := erofstest.MustRead(t, f)
	for name, content := range want {
		if got[name].Content != content {
			t.Errorf("%s: content moved wrongly", name)
		}
	}
}

// TestDirectorySizes meets the edges of directory blocks and of the inline tail.
func TestDirectorySizes(t *testing.T) {
	for _, length := range []int{1, 4, 116, 243, 244, 255} {
		for _, count := range []int{0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 200} {
			f := newFile(t)
			w := erofs.NewWriter(f)
			children := map[string]*erofs.Inode{}
			for i := range count {
				name := strings.Repeat("q", length)
				if length >= 4 {
					name = fmt.Sprintf("%04d", i) + name[4:]
				} else {
					name = string(rune('A' + i%14))
				}
				children[name] = &erofs.Inode{Mode: erofs.TypeFIFO | 0o600}
			}
			finish(t, w, dir(map[string]*erofs.Inode{"d": dir(children)}))
			if got := erofstest.MustRead(t, f); len(got) != len(children)+2 {
				t.Errorf("%d names of %d bytes: read %d back", len(children), length, len(got)-2)
			}
		}
	}
}

// TestXattrSizes pushes inline contents around block borders with attributes of every size.
func TestXattrSizes(t *testing.T) {
	for _, inline := range []int{0, 1, 700, erofs.InlineMax} {
		f := newFile(t)
		w := erofs.NewWriter(f)
		children := map[string]*erofs.Inode{}
		for size := 0; size < 9000; size += 97 {
			n := file(t, w, strings.Repeat("c", inline))
			n.Xattrs = []erofs.Xattr{{Name: "user.v", Value: strings.Repeat("v", size)}}
			children[fmt.Sprint(size)] = n
		}
		finish(t, w, dir(children))
		got := erofstest.MustRead(t, f)
		for name, n := range children {
			if e := got[name]; e.Xattrs["user.v"] != n.Xattrs[0].Value || len(e.Content) != inline {
				t.Fatalf("inline %d, attribute of %s bytes: read %d and %d bytes", inline, name, len(e.Content), len(e.Xattrs["user.v"]))
			}
		}
	}
}

func TestInvalidTrees(t *testing.T) {
	shared := dir(nil)
	for name, root := range map[string]*erofs.Inode{
		"no root":             nil,
		"file as root":        {Mode: erofs.TypeRegular},
		"slash":               dir(map[string]*erofs.Inode{"a/b": dir(nil)}),
		"dot dot":             dir(map[string]*erofs.Inode{"..": dir(nil)}),
		"empty name":          dir(map[string]*erofs.Inode{"": dir(nil)}),
		"NUL":                 dir(map[string]*erofs.Inode{"a\x00": dir(nil)}),
		"long name":           dir(map[string]*erofs.Inode{strings.Repeat("n", 256): dir(nil)}),
		"nil inode":           dir(map[string]*erofs.Inode{"n": nil}),
		"directory twice":     dir(map[string]*erofs.Inode{"a": shared, "b": shared}),
		"device":              dir(map[string]*erofs.Inode{"d": {Mode: 0o020600}}),
		"empty link":          dir(map[string]*erofs.Inode{"l": symlink("")}),
		"long link":           dir(map[string]*erofs.Inode{"l": symlink(strings.Repeat("t", erofs.TargetMax+1))}),
		"content out of file": dir(map[string]*erofs.Inode{"f": {Mode: erofs.TypeRegular, Size: 5000, Block: 7}}),
		"super block as file": dir(map[string]*erofs.Inode{"f": {Mode: erofs.TypeRegular, Size: 5000, Block: 0}}),
		"strange attribute":   dir(map[string]*erofs.Inode{"f": {Mode: erofs.TypeRegular, Xattrs: []erofs.Xattr{{Name: "system.x"}}}}),
		"attribute twice":     dir(map[string]*erofs.Inode{"f": {Mode: erofs.TypeRegular, Xattrs: []erofs.Xattr{{Name: "user.x"}, {Name: "user.x"}}}}),
		"huge attribute":      dir(map[string]*erofs.Inode{"f": {Mode: erofs.TypeRegular, Xattrs: []erofs.Xattr{{Name: "user.x", Value: strings.Repeat("v", 1<<16)}}}}),
	} {
		if _, err := erofs.NewWriter(newFile(t)).Finish(root, align); !errors.Is(err, erofs.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestShortContent(t *testing.T) {
	f := newFile(t)
	w := erofs.NewWriter(f)
	long := strings.Repeat("x", 3<<20)
	if _, err := w.Append(strings.NewReader(long[:2<<20]), 3<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("short content: %v, want unexpected EOF", err)
	}
	zeros := strings.Repeat("\x00", 2<<20)
	finish(t, w, dir(map[string]*erofs.Inode{"zeros": file(t, w, zeros)}))
	if got := erofstest.MustRead(t, f); got["zeros"].Content != zeros {
		t.Error("what a failed content left behind shows through a hole")
	}
}

// ExampleWriter makes an image with one directory and one file.
func ExampleWriter() {
	f, err := os.CreateTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	w := erofs.NewWriter(f)
	content := strings.Repeat("hello ", 1000)
	block, err := w.Append(strings.NewReader(content), int64(len(content)))
	if err != nil {
		panic(err)
	}
	root := &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofs.Inode{
		"hello": {Mode: erofs.TypeRegular | 0o644, Size: int64(len(content)), Block: block},
	}}
	size, err := w.Finish(root, erofs.BlockSize)
	if err != nil {
		panic(err)
	}
	fmt.Println(size/erofs.BlockSize, "blocks")
	// Output: 4 blocks
}
