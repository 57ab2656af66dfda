package block

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The guest's side of these costs next to nothing, so what they show is the device: from kick to interrupt.

// eventfd makes a file for kicks.
func eventfd(b *testing.B) *os.File {
	b.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "kick")
	b.Cleanup(func() { f.Close() })
	return f
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// benchmark keeps depth requests of size bytes in flight on a cached image, kicked by an eventfd.
func benchmark(b *testing.B, kind uint32, size, depth int) {
	const length = 16 << 20
	image, _ := newImage(b, length)
	if _, err := image.WriteAt([][]byte{make([]byte, length)}, 0); err != nil {
		b.Fatal(err)
	}
	r := newRing(b)
	kick := eventfd(b)
	r.run(newDevice(b, Config{Backend: image}), allFeatures, kick)
	submit := func(list ...int) {
		r.offer(list...)
		if _, err := kick.Write(one); err != nil {
			b.Fatal(err)
		}
	}
	out, room := make([]byte, 0), size
	if kind == typeOut {
		out, room = make([]byte, size), 0
	}
	var list []int
	for i := range depth {
		r.put(i, kind, uint64(i*size/sectorSize), out, room)
		list = append(list, i)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += depth {
		submit(list...)
		for range list {
			r.wait()
		}
	}
}

func BenchmarkRead4KDepth1(b *testing.B)   { benchmark(b, typeIn, 4096, 1) }
func BenchmarkRead4KDepth32(b *testing.B)  { benchmark(b, typeIn, 4096, 32) }
func BenchmarkWrite4KDepth1(b *testing.B)  { benchmark(b, typeOut, 4096, 1) }
func BenchmarkWrite4KDepth32(b *testing.B) { benchmark(b, typeOut, 4096, 32) }

// BenchmarkHandle is the device alone, without kicks, interrupts and waiting.
func BenchmarkHandle(b *testing.B) {
	image, _ := newImage(b, 1<<20)
	if _, err := image.WriteAt([][]byte{make([]byte, 1<<20)}, 0); err != nil {
		b.Fatal(err)
	}
	r := newRing(b)
	stop := r.run(newDevice(b, Config{Backend: image}), allFeatures, nil)
	stop()
	s := newServer(newDevice(b, Config{Backend: image}), r.active(allFeatures), 0)
	for i := range slots {
		r.put(i, typeIn, uint64(8*i), nil, 4096)
	}
	list := all()
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += slots {
		r.offer(list...)
		if !s.drain(b.Context()) {
			b.Fatal(s.err)
		}
	}
}
