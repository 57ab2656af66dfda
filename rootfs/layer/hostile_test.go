package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"spore/rootfs/erofs"
	"spore/rootfs/layer"
)

// TestIMG01HostileNames: a layer cannot name anything outside its image, by whatever means.
func TestIMG01HostileNames(t *testing.T) {
	deep := strings.Repeat("d/", 600) + "f"
	for _, c := range []struct {
		name    string
		headers []tar.Header
		want    error
	}{
		{"dot dot", []tar.Header{regular("../escape", "x")}, layer.ErrPath},
		{"dot dot inside", []tar.Header{regular("a/../../escape", "x")}, layer.ErrPath},
		{"dot dot that stays inside", []tar.Header{regular("a/../b", "x")}, layer.ErrPath},
		{"dot dot at the end", []tar.Header{directory("a/..")}, layer.ErrPath},
		{"absolute dot dot", []tar.Header{regular("/../escape", "x")}, layer.ErrPath},
		{"whiteout across dot dot", []tar.Header{whiteout("a/../../.wh.b")}, layer.ErrPath},
		{"whiteout of dot dot", []tar.Header{whiteout("a/.wh...")}, layer.ErrPath},
		{"whiteout of dot", []tar.Header{whiteout("a/.wh..")}, layer.ErrPath},
		{"hard link to dot dot", []tar.Header{hardlink("l", "../../etc/passwd")}, layer.ErrPath},
		{"hard link to a host file", []tar.Header{hardlink("l", "/etc/passwd")}, layer.ErrLink},
		{"hard link through a host link", []tar.Header{symlink("s", "/etc"), hardlink("l", "s/passwd")}, layer.ErrLink},
		{"hard link to a directory", []tar.Header{directory("d"), hardlink("l", "d")}, layer.ErrLink},
		{"hard link to the root", []tar.Header{hardlink("l", "/")}, layer.ErrLink},
		{"empty link", []tar.Header{symlink("l", "")}, layer.ErrLink},
		{"long link", []tar.Header{symlink("l", strings.Repeat("t", 4096))}, layer.ErrLink},
		{"below a file", []tar.Header{regular("f", "x"), regular("f/g", "x")}, layer.ErrParent},
		{"below a link to a file", []tar.Header{regular("f", "x"), symlink("l", "f"), regular("l/g", "x")}, layer.ErrParent},
		{"below a loop", []tar.Header{symlink("a", "b"), symlink("b", "a"), regular("a/x", "")}, layer.ErrLoop},
		{"below a link to itself", []tar.Header{symlink("a", "a/a"), regular("a/x", "")}, layer.ErrLoop},
		{"root as a file", []tar.Header{regular(".", "x")}, layer.ErrPath},
		{"root as a link", []tar.Header{symlink("/", "/etc")}, layer.ErrPath},
		{"long component", []tar.Header{regular(strings.Repeat("n", 256), "x")}, layer.ErrPath},
		{"long path", []tar.Header{regular(strings.Repeat("n/", 2049)+"n", "x")}, layer.ErrPath},
		{"deep path", []tar.Header{regular(deep, "x")}, layer.ErrPath},
		{"deeper and deeper through a link", deeper(), layer.ErrPath},
		{"long component behind a link", []tar.Header{symlink("l", strings.Repeat("n", 300)), regular("l/x", "")}, layer.ErrPath},
		{"owner out of range", []tar.Header{{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 32, Format: tar.FormatPAX}}, layer.ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := flatten(t, layer.Limits{}, archive(t, c.headers...))
			var entry *layer.EntryError
			if !errors.Is(err, c.want) || !errors.As(err, &entry) {
				t.Errorf("%v, want an EntryError with %q", err, c.want)
			}
		})
	}
}

// deeper nests directories beyond the limit by always going through a link to the deepest.
func deeper() []tar.Header {
	headers := []tar.Header{directory("d"), symlink("l", "d")}
	at := "d"
	for range 40 {
		step := strings.Repeat("s/", 20)
		headers = append(headers, directory("l/"+step))
		at += "/" + strings.TrimSuffix(step, "/")
		headers = append(headers, symlink("l", at))
	}
	return headers
}

// TestIMG01LinksStayInside: links that point outside are kept as text and mean the image's own root.
func TestIMG01LinksStayInside(t *testing.T) {
	got, err := flatten(t, layer.Limits{}, archive(t,
		symlink("abs", "/etc"), symlink("up", "../../../../../../tmp"),
		regular("abs/passwd", "inside"), regular("up/x", "inside"), whiteout("up/.wh.x")))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"etc/passwd", "tmp/x"} {
		if got[path].Content != "inside" {
			t.Errorf("%s is not in the image", path)
		}
	}
}

// TestIMG01Devices: device nodes are left out, with a warning unless they are those of /dev.
func TestIMG01Devices(t *testing.T) {
	var warnings []string
	tree := layer.NewTree(erofs.NewWriter(imageFile(t)), layer.Limits{}, func(m string) { warnings = append(warnings, m) })
	data := archive(t,
		tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8, Mode: 0o666},
		tar.Header{Typeflag: tar.TypeChar, Name: "mem", Devmajor: 1, Devminor: 1, Mode: 0o666},
		tar.Header{Typeflag: tar.TypeChar, Name: "whiteout"},
		tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3})
	if err := tree.Apply(context.Background(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if len(tree.Root().Children) != 0 || len(warnings) != 3 {
		t.Errorf("%d entries, warnings %q", len(tree.Root().Children), warnings)
	}
}

// TestIMG01LyingHeaders: sizes and structures that are not what they say.
func TestIMG01LyingHeaders(t *testing.T) {
	whole := archive(t, regular("f", strings.Repeat("x", 5000)), regular("g", "y"))
	huge := archive(t, regular("f", "x"))
	copy(huge[124:], "77777777777\x00") // size field: 8 GiB
	repairChecksum(huge[:512])
	negative := archive(t, regular("f", "x"))
	copy(negative[124:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	repairChecksum(negative[:512])
	garbage := append([]byte(strings.Repeat("not a tar file ", 100)), make([]byte, 1024)...)
	for name, data := range map[string][]byte{
		"cut in a header":  whole[:300],
		"cut in a content": whole[:512+1000],
		"huge size":        huge,
		"negative size":    negative,
		"garbage":          garbage,
	} {
		if _, err := flatten(t, layer.Limits{}, data); !errors.Is(err, layer.ErrHeader) {
			t.Errorf("%s: %v, want ErrHeader", name, err)
		}
	}
	if _, err := flatten(t, layer.Limits{Size: 1 << 30}, huge); !limited(err, "size") {
		t.Errorf("huge size with a smaller limit: %v", err)
	}
}

func limited(err error, name string) bool {
	var limit *layer.LimitError
	return errors.As(err, &limit) && limit.Name == name
}

// repairChecksum makes a changed header block valid again.
func repairChecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// repeat is one archive entry over and over, without an end.
type repeat struct {
	next func(i int) []byte
	i    int
	rest []byte
}

func (r *repeat) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		r.rest = r.next(r.i)
		r.i++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// TestIMG02Bombs: archives without end or with contents far beyond their own size meet a limit.
func TestIMG02Bombs(t *testing.T) {
	one := func(h tar.Header) func(int) []byte {
		data := archive(t, h)
		return func(int) []byte { return data[:len(data)-1024] } // without the end
	}
	numbered := func(make func(name string) tar.Header) func(int) []byte {
		return func(i int) []byte { return one(make(fmt.Sprint(i)))(0) }
	}
	limits := layer.Limits{Entries: 3000, Size: 8 << 20, Metadata: 4 << 20}
	for _, c := range []struct {
		name  string
		next  func(int) []byte
		limit string
	}{
		{"files without end", numbered(func(n string) tar.Header { return regular(n, "") }), "entries"},
		{"the same file without end", one(regular("same", strings.Repeat("z", 100_000))), "size"},
		{"hard links without end", func(i int) []byte {
			if i == 0 {
				return one(regular("f", "x"))(0)
			}
			return one(hardlink(fmt.Sprint(i), "f"))(0)
		}, "entries"},
		{"deep paths", numbered(func(n string) tar.Header { return directory(strings.Repeat(n+"/", 300)) }), "entries"},
		{"long names", numbered(func(n string) tar.Header { return regular(strings.Repeat("n", 240)+n, strings.Repeat("c", 1000)) }), "metadata"},
		{"long links", numbered(func(n string) tar.Header { return symlink(n, strings.Repeat("t", 4000)) }), "metadata"},
		{"attributes", numbered(func(n string) tar.Header {
			h := regular(n, "")
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 60000)}
			return h
		}), "metadata"},
		{"zeros behind the end", func(i int) []byte {
			if i == 0 {
				return archive(t, regular("f", "x"))
			}
			return make([]byte, 1<<20)
		}, "size"},
		{"whiteouts without end", one(whiteout(".wh.x")), "size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := imageFile(t)
			tree := layer.NewTree(erofs.NewWriter(f), limits, nil)
			err := tree.Apply(context.Background(), &repeat{next: c.next})
			if !limited(err, c.limit) {
				t.Errorf("%v, want the limit for %s", err, c.limit)
			}
			if info, _ := f.Stat(); info.Size() > limits.Size+(1<<20) {
				t.Errorf("wrote %d bytes", info.Size())
			}
		})
	}
}

// TestIMG02WorkBombs: archives that are small but make much work, by links to links and by whiteouts of a large tree.
func TestIMG02WorkBombs(t *testing.T) {
	entry := func(h tar.Header) []byte {
		data := archive(t, h)
		return data[:len(data)-1024]
	}
	opaque := entry(whiteout(".wh..wh..opq"))
	through := entry(whiteout(strings.Repeat("l/", 60) + ".wh.x"))
	for name, next := range map[string]func(int) []byte{
		"opaque over and over": func(i int) []byte {
			if i < 2000 {
				return entry(regular(fmt.Sprint(i), ""))
			}
			return opaque
		},
		"long way through links": func(i int) []byte {
			switch i {
			case 0:
				return entry(directory("d"))
			case 1:
				return entry(symlink("l", strings.Repeat("d/../", 800)+"."))
			}
			return through
		},
	} {
		tree := layer.NewTree(erofs.NewWriter(imageFile(t)), layer.Limits{Steps: 1 << 20}, nil)
		if err := tree.Apply(context.Background(), &repeat{next: next}); !limited(err, "steps") {
			t.Errorf("%s: %v, want the limit for steps", name, err)
		}
	}
}

// TestIMG02SparseBomb: a small archive whose sparse file claims 4 TiB.
func TestIMG02SparseBomb(t *testing.T) {
	for size, limit := range map[int64]string{4 << 40: "size", 8 << 30: "ratio"} {
		data := sparseArchive(t, size)
		if _, err := flatten(t, layer.Limits{}, data); !limited(err, limit) {
			t.Errorf("sparse file of %d bytes: %v, want the limit for %s", size, err, limit)
		}
	}
}

// sparseArchive holds one PAX 1.0 sparse file that is all hole.
func sparseArchive(t testing.TB, size int64) []byte {
	t.Helper()
	var pax strings.Builder
	for _, kv := range [][2]string{
		{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "sparse"}, {"GNU.sparse.realsize", fmt.Sprint(size)},
	} {
		n := len(kv[0]) + len(kv[1]) + 3
		for len(fmt.Sprint(n))+len(kv[0])+len(kv[1])+3 != n {
			n++
		}
		fmt.Fprintf(&pax, "%d %s=%s\n", n, kv[0], kv[1])
	}
	block := func(name string, flag byte, content string) []byte {
		b := archive(t, regular(name, content))
		b = b[:len(b)-1024]
		b[156] = flag
		repairChecksum(b[:512])
		return b
	}
	sparseMap := "1\n" + fmt.Sprint(size) + "\n0\n"
	sparseMap += strings.Repeat("\x00", 512-len(sparseMap))
	data := append(block("x", tar.TypeXHeader, pax.String()), block("sparse", tar.TypeReg, sparseMap)...)
	return append(data, make([]byte, 1024)...)
}

// TestAG04CopiedOutArchive: what a guest sends when files are copied out of it is judged by the same rules.
func TestAG04CopiedOutArchive(t *testing.T) {
	for name, c := range map[string]struct {
		headers []tar.Header
		want    error
	}{
		"dot dot":           {[]tar.Header{regular("../../root/.ssh/authorized_keys", "key")}, layer.ErrPath},
		"link then file":    {[]tar.Header{symlink("x", "/root/.ssh"), regular("x/authorized_keys", "key")}, nil},
		"hard link outside": {[]tar.Header{hardlink("x", "/etc/shadow")}, layer.ErrLink},
	} {
		got, err := flatten(t, layer.Limits{}, archive(t, c.headers...))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err == nil && got["root/.ssh/authorized_keys"].Content != "key" {
			t.Errorf("%s: the file is not in the image", name)
		}
	}
}
