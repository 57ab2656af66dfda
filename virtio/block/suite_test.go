package block

import (
	"bytes"
	"testing"

	"spore/virtio"
	"spore/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	image, _ := newImage(t, testSectors*sectorSize)
	virtiotest.Suite(t, virtiotest.Case{
		New:   func(t *testing.T) virtio.Device { return newDevice(t, Config{Backend: image, ID: "suite"}) },
		Use:   use,
		Eager: []int{0},
	})
}

// use writes, flushes, and reads back over a framing of its own.
func use(t *testing.T, d *virtiotest.Driver) {
	t.Helper()
	data := bytes.Repeat([]byte("spore"), 2*sectorSize)[:2*sectorSize]
	send := func(buffers ...virtiotest.Buffer) (reply []byte) {
		t.Helper()
		_, at := d.Submit(0, buffers...)
		d.WaitUsed(0, 1)
		for i, b := range buffers {
			if b.Data == nil {
				reply = append(reply, d.Bytes(at[i], b.Len)...)
			}
		}
		return reply
	}
	one := virtiotest.Buffer{Len: 1}
	h := header(typeOut, 7)
	if got := send(virtiotest.Buffer{Data: h[:3]}, virtiotest.Buffer{Data: append(h[3:], data[:100]...)}, virtiotest.Buffer{Data: data[100:]}, one); got[0] != statusOK {
		t.Errorf("write: status %d", got[0])
	}
	if got := send(virtiotest.Buffer{Data: header(typeFlush, 0)}, one); got[0] != statusOK {
		t.Errorf("flush: status %d", got[0])
	}
	got := send(virtiotest.Buffer{Data: header(typeIn, 7)}, virtiotest.Buffer{Len: 513}, virtiotest.Buffer{Len: len(data) - 512})
	if !bytes.Equal(got[:len(data)], data) || got[len(data)] != statusOK {
		t.Errorf("read: status %d", got[len(data)])
	}
}
