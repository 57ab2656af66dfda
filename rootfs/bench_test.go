package rootfs_test

import (
	"fmt"
	"strings"
	"testing"

	"spore/rootfs"
)

// BenchmarkImport makes an image of 2,000 files, 64 MiB in all.
func BenchmarkImport(b *testing.B) {
	s := openStore(b, rootfs.Config{})
	files := make([]file, 2000)
	for i := range files {
		files[i] = file{fmt.Sprintf("usr/lib/%d/file-%d", i%50, i), strings.Repeat(fmt.Sprintf("%08d", i), 4<<10)}
	}
	source := "tar:" + write(b, "root.tar", tarBytes(b, files...))
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := s.Import(b.Context(), source, "bench", rootfs.ImportOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGet is what every start of a sandbox does.
func BenchmarkGet(b *testing.B) {
	s := openStore(b, rootfs.Config{})
	importPlain(b, s, "debian:12")
	for b.Loop() {
		img, err := s.Get("debian:12")
		if err != nil {
			b.Fatal(err)
		}
		f, err := img.Open()
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
