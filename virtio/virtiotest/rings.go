package virtiotest

import (
	"testing"

	"spore/guestmem"
)

// ringCase is something a driver does to a ring as a whole. What the device makes of it differs, but it must
// serve again after a reset.
type ringCase struct {
	name string
	run  func(t *testing.T, d *Driver, q int)
}

var ringCases = []ringCase{
	{"Q-02 an available entry beyond the table", func(t *testing.T, d *Driver, q int) {
		d.rings[q].writable[0] = 64
		d.Publish(q, d.rings[q].size)
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff}) // which comes back, after the other was passed over
		d.WaitUsed(q, 1)
	}},
	{"Q-04 descriptors without a byte", func(t *testing.T, d *Driver, q int) {
		d.SubmitRaw(q, Link([]Desc{{somewhere, 0, 0, 0}, {somewhere, 0, 0, 0}, {somewhere, 0, Write, 0}})...)
		if u := d.WaitUsed(q, 1); u[0].Len != 0 {
			t.Errorf("%d bytes written into nothing", u[0].Len)
		}
	}},
	{"Q-06 available index jumps", func(t *testing.T, d *Driver, q int) {
		r := d.rings[q]
		d.put16(r.avail+2, r.availIdx+r.size+1)
		d.Kick(q)
		d.Await("request for a reset", d.NeedsReset)
	}},
	{"Q-06 available index goes backwards", func(t *testing.T, d *Driver, q int) {
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
		d.WaitUsed(q, 1)
		d.put16(d.rings[q].avail+2, 0)
		d.Kick(q)
		d.Await("request for a reset", d.NeedsReset)
	}},
	{"Q-07 one head twice", func(t *testing.T, d *Driver, q int) {
		r := d.rings[q]
		d.PutDesc(r.desc, Desc{somewhere, 64, Next, 0x7fff})
		r.writable[0] = 0
		d.Publish(q, 0)
		d.Publish(q, 0)
		d.Kick(q)
		n := 0
		d.Await("end of both", func() bool { n += len(d.Completed(q)); return n >= 2 || d.NeedsReset() })
	}},
	{"Q-08 many rounds of a full ring", func(t *testing.T, d *Driver, q int) {
		for range 8 {
			for range d.rings[q].size {
				d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
			}
			d.WaitUsed(q, int(d.rings[q].size))
		}
	}},
	{"Q-10 descriptors that change under the device", func(t *testing.T, d *Driver, q int) {
		r := d.rings[q]
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				for n := range guestmem.GPA(4) {
					d.Mem.StoreUint64(r.desc+16*n, i*0x9e3779b97f4a7c15)
					d.Mem.StoreUint64(r.desc+16*n+8, (i^uint64(n))*0xbf58476d1ce4e5b9)
				}
			}
		}()
		for h := range uint16(4) {
			r.writable[h] = 1 << 40
		}
		for i := 0; i < 200 && !d.NeedsReset(); i++ {
			d.Publish(q, uint16(i%4))
			d.Kick(q)
			d.Completed(q)
		}
		close(stop)
		<-stopped
	}},
	{"Q-11 a driver that writes the used ring", func(t *testing.T, d *Driver, q int) {
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
		d.WaitUsed(q, 1)
		d.put16(d.rings[q].used+2, 0x5555)
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
		d.Await("the device's own index", func() bool {
			idx, err := d.Mem.LoadUint16(d.rings[q].used + 2)
			return err == nil && idx == 2
		})
	}},
	{"Q-12 a used event far away", func(t *testing.T, d *Driver, q int) {
		r := d.rings[q]
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
		d.WaitUsed(q, 1)
		d.PutDesc(r.desc, Desc{somewhere, 64, Next, 0x7fff})
		r.writable[0] = 0
		d.Publish(q, 0)
		d.put16(r.avail+4+2*guestmem.GPA(r.size), 0x8000)
		d.Kick(q)
		d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff}) // asks properly
		d.WaitUsed(q, 2)
	}},
}
