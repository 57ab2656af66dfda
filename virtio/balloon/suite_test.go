package balloon

import (
	"slices"
	"testing"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	b := new(discards)
	virtiotest.Suite(t, virtiotest.Case{
		New: func(t *testing.T) virtio.Device {
			d, err := New(Config{Backend: b, RAM: 12 << 20})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Use: func(t *testing.T, d *virtiotest.Driver) {
			t.Helper()
			b.take()
			d.Submit(0, virtiotest.Buffer{Data: rawPFNs(500, 501)})
			d.WaitUsed(0, 1)
			d.Submit(1, virtiotest.Buffer{Data: rawPFNs(501)})
			d.WaitUsed(1, 1)
			const at = guestmem.GPA(1<<20 + 1<<19)
			d.SubmitRaw(3, virtiotest.Desc{Addr: at, Len: 1 << 18, Flags: virtiotest.Write})
			d.WaitUsed(3, 1)
			if got, want := b.take(), []span{{500 << 12, 502 << 12}, {uint64(at), uint64(at) + 1<<18}}; !slices.Equal(got, want) {
				t.Errorf("discarded %x, want %x", got, want)
			}
			// Statistics go and come back when they are asked for.
			dev := d.Dev.(*Device)
			before := dev.Counters()["statistics"]
			d.Submit(2, virtiotest.Buffer{Data: rawStat(4, 4096)})
			taken(t, dev, before+1)
			if v, ok := dev.Stats().Get(StatFree); !ok || v != 4096 {
				t.Errorf("free: %d", v)
			}
			d.WaitUsed(2, 1)
		},
		Eager: []int{0, 1, 3},
	})
}
