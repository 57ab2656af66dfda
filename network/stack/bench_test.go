package stack_test

import (
	"io"
	"net"
	"testing"
)

// What a MiB costs, and how much is allocated for it. The guest is in this process too, and its part is in the figures.

func BenchmarkFromGuest(b *testing.B) {
	r := setUp(b, everything, nil)
	at := r.serve(b, "8.8.8.8:9", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	c, err := r.dial(b, at)
	if err != nil {
		b.Fatal(err)
	}
	mib := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(mib); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToGuest(b *testing.B) {
	r := setUp(b, everything, nil)
	at := r.serve(b, "8.8.8.8:9", func(c *net.TCPConn) {
		mib := make([]byte, 1<<20)
		for {
			if _, err := c.Write(mib); err != nil {
				return
			}
		}
	})
	c, err := r.dial(b, at)
	if err != nil {
		b.Fatal(err)
	}
	mib := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(c, mib); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoundTrip is one byte there and back.
func BenchmarkRoundTrip(b *testing.B) {
	r := setUp(b, everything, nil)
	at := r.serve(b, "8.8.8.8:9", echoServer)
	c, err := r.dial(b, at)
	if err != nil {
		b.Fatal(err)
	}
	one := make([]byte, 1)
	for b.Loop() {
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
}
