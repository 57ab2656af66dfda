package rng_test

import (
	"bytes"
	"errors"
	"math/rand"
	"testing"

	"spore/virtio"
	"spore/virtio/rng"
	"spore/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, virtiotest.Case{
		New: func(*testing.T) virtio.Device { return rng.New(rand.New(rand.NewSource(1))) },
		Use: func(t *testing.T, d *virtiotest.Driver) {
			t.Helper()
			_, at := d.Submit(0, virtiotest.Buffer{Len: 100}, virtiotest.Buffer{Len: 1})
			if u := d.WaitUsed(0, 1); u[0].Len != 101 {
				t.Fatalf("%d bytes, want 101", u[0].Len)
			}
			if bytes.Equal(d.Bytes(at[0], 100), make([]byte, 100)) {
				t.Error("nothing was written")
			}
		},
		Eager: []int{0},
	})
}

// TestRNG01 asks for far more than a request may get.
func TestRNG01(t *testing.T) {
	d := virtiotest.NewDriver(t, rng.New(rand.New(rand.NewSource(1))))
	d.Negotiate(virtiotest.All)
	d.Submit(0, virtiotest.Buffer{Len: 1 << 20})
	if u := d.WaitUsed(0, 1); u[0].Len != 64<<10 {
		t.Errorf("RNG-01: %d bytes, want 64 KiB", u[0].Len)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

// TestBrokenSource makes the device ask for a reset rather than hand out zeros.
func TestBrokenSource(t *testing.T) {
	d := virtiotest.NewDriver(t, rng.New(broken{}))
	d.Negotiate(virtiotest.All)
	d.Submit(0, virtiotest.Buffer{Len: 16})
	d.Await("request for a reset", d.NeedsReset)
}
