package pmem

import (
	"bytes"
	"testing"

	"spore/virtio"
	"spore/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, virtiotest.Case{
		New: func(t *testing.T) virtio.Device { return newDevice(t) },
		Use: func(t *testing.T, d *virtiotest.Driver) {
			t.Helper()
			_, at := d.Submit(0, virtiotest.Buffer{Data: []byte{0, 0, 0, 0}}, virtiotest.Buffer{Len: 4})
			if u := d.WaitUsed(0, 1); u[0].Len != 4 || !bytes.Equal(d.Bytes(at[1], 4), []byte{0, 0, 0, 0}) {
				t.Errorf("flush: reported %d bytes: %x", u[0].Len, d.Bytes(at[1], 4))
			}
		},
		Eager: []int{0},
	})
}
