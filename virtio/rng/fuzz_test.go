package rng_test

import (
	"math/rand/v2"
	"testing"

	"spore/virtio/rng"
	"spore/virtio/virtiotest"
)

// FuzzRNG makes requests of any chain: each comes back, with no more than its share, and no byte is written
// outside the chain's writable buffers.
func FuzzRNG(f *testing.F) {
	f.Add([]byte("\x00\x02\x00\x00\x40\x00\x00\x00"))                                 // 64 bytes
	f.Add([]byte("\x00\x03\x00\x00\x00\x8c\x00\x00\x00\x02\x00\x00\x00\x8c\x00\x00")) // 70 KiB, twice the same half
	f.Add([]byte("\x02\x01\x00\x00\x40\x00\x00\x00\x04\x02\x00\x00\x01\x00\x00\x00")) // readable, writable
	f.Add([]byte("\x07\x02\x00\x00\xff\xff\xff\xff"))                                 // wraps
	fuzzer := virtiotest.NewFuzzer(f)
	f.Fuzz(func(t *testing.T, program []byte) {
		d := fuzzer.Driver(t, rng.New(rand.NewChaCha8([32]byte{})))
		for _, u := range d.Fuzz(0, program, nil) {
			if u.Len > 64<<10 {
				t.Errorf("RNG-01: %d bytes for one request", u.Len)
			}
		}
		if d.NeedsReset() {
			t.Error("the device needs a reset after a chain")
		}
	})
}
