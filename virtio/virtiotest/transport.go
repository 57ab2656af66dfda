package virtiotest

import (
	"os"
	"runtime"
	"sync"
	"testing"
)

// transportCase is something a driver does to the registers. Afterwards the device must serve after a reset.
type transportCase struct {
	name string
	run  func(t *testing.T, c Case, d *Driver)
}

var transportCases = []transportCase{
	{"TR-01 queues are frozen while the device runs", func(t *testing.T, c Case, d *Driver) {
		d.Negotiate(All)
		for q := range d.rings {
			d.Write(RegQueueSel, uint32(q))
			for _, reg := range []uint64{RegQueueNum, RegQueueDesc, RegQueueDesc + 4, RegQueueDriver, RegQueueDriver + 4, RegQueueDevice, RegQueueDevice + 4, RegQueueReady} {
				d.Write(reg, 0xffff0000)
				d.Write(reg, 0)
			}
			if d.Read(RegQueueReady) != 1 {
				t.Errorf("queue %d can be taken away", q)
			}
		}
		if d.Bus.Counters()["transport_refused"] == 0 {
			t.Error("refused writes are not counted")
		}
		c.Use(t, d) // on the rings as they were
	}},
	{"TR-02 queue sizes that cannot be", func(t *testing.T, c Case, d *Driver) {
		d.NegotiateFeatures(All)
		d.Write(RegQueueSel, 0)
		for _, size := range []uint32{0, 3, 0xffff, 0x10000, d.Read(RegQueueNumMax) + 1} {
			d.Write(RegQueueNum, size)
			if size != 0 && size&(size-1) == 0 {
				continue
			}
			d.Write(RegQueueReady, 1)
			if d.Read(RegQueueReady) != 0 {
				t.Errorf("a queue of %d descriptors becomes ready", size)
			}
		}
		d.Write(RegStatus, 15)
		d.Write(RegQueueNotify, 0)
	}},
	{"TR-03 queues that are not there", func(t *testing.T, c Case, d *Driver) {
		d.Negotiate(All)
		for _, q := range []uint32{uint32(len(d.rings)), 1000, 0x80000000, 0xffffffff} {
			d.Write(RegQueueSel, q)
			if got := d.Read(RegQueueNumMax); got != 0 {
				t.Errorf("queue %#x has size %d", q, got)
			}
			d.Write(RegQueueNum, 16)
			d.Write(RegQueueReady, 1)
			d.Write(RegQueueNotify, q)
		}
		c.Use(t, d)
	}},
	{"TR-04 steps out of order", func(t *testing.T, c Case, d *Driver) {
		for _, bad := range []uint32{2, 4, 8, 15, 0xffffffff, 1 << 20} {
			d.Write(RegStatus, bad)
			if got := d.Read(RegStatus); got != 0 {
				t.Errorf("status goes from 0 to %#x", got)
			}
		}
		d.Negotiate(All)
		for _, bad := range []uint32{1, 3, 11, 7, 0x1f} {
			d.Write(RegStatus, bad)
			if got := d.Read(RegStatus); got != 15 {
				t.Errorf("status goes from 15 to %#x by writing %#x", got, bad)
			}
		}
		d.Write(RegStatus, 15) // DRIVER_OK twice
		c.Use(t, d)
	}},
	{"TR-05 rings outside memory", func(t *testing.T, c Case, d *Driver) {
		d.NegotiateFeatures(All)
		d.Write(RegQueueSel, 0)
		d.Write(RegQueueNum, 16)
		d.Write(RegQueueDesc, 0xfffff000)
		d.Write(RegQueueDesc+4, 0xffffffff)
		d.Write(RegQueueReady, 1)
		d.Write(RegStatus, 15)
		if !d.NeedsReset() {
			t.Error("the device does not ask for a reset")
		}
		if d.Read(RegInterruptStatus)&2 == 0 || d.Interrupts() == 0 {
			t.Error("no configuration-change interrupt")
		}
	}},
	{"TR-06 reads of what is not there", func(t *testing.T, c Case, d *Driver) {
		d.Negotiate(All)
		for _, n := range []int{1, 2, 4, 8} {
			for off := uint64(0); off < RegConfig; off += uint64(n) {
				p := []byte{0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa}[:n]
				d.Bus.Read(off, p)
				for _, b := range p {
					if n != 4 && b != 0 {
						t.Fatalf("a read of %d bytes at %#x is %x", n, off, p)
					}
				}
			}
		}
		for _, off := range []uint64{0x0b0, 0x0b4, 0x0b8, 0x0bc} {
			if got := d.Read(off); got != 0xffffffff {
				t.Errorf("register %#x of shared memory that is not there reads %#x", off, got)
			}
		}
		for _, off := range []uint64{0x01c, 0x020, 0x038, 0x050, 0x064, 0x080, 0x0ac, 0x0c0} {
			if got := d.Read(off); got != 0 {
				t.Errorf("register %#x reads %#x", off, got)
			}
		}
		c.Use(t, d)
	}},
	{"TR-07 the edge of the configuration space", func(t *testing.T, c Case, d *Driver) {
		d.Negotiate(All)
		for off := uint64(RegConfig); off < RegConfig+0x200; off++ {
			for _, n := range []int{1, 2, 4, 8, 64} {
				d.Bus.Read(off, make([]byte, n))
			}
		}
		for _, off := range []uint64{RegConfig + 0xffff, RegConfig + 0x10000, 1 << 40, ^uint64(0), ^uint64(0) - 3} {
			p := []byte{0xaa, 0xaa, 0xaa, 0xaa}
			d.Bus.Read(off, p)
			if string(p) != "\x00\x00\x00\x00" {
				t.Errorf("configuration at %#x reads %x", off, p)
			}
			d.Bus.Write(off, p)
		}
		c.Use(t, d)
	}},
	{"TR-08 features that were not offered", func(t *testing.T, c Case, d *Driver) {
		d.Write(RegStatus, 1)
		d.Write(RegStatus, 3)
		for half := range uint32(2) {
			d.Write(RegDriverFeaturesSel, half)
			d.Write(RegDriverFeatures, 0xffffffff)
		}
		d.Write(RegStatus, 11)
		if got := d.Read(RegStatus); got != 3 {
			t.Errorf("FEATURES_OK with every bit: status %#x", got)
		}
		d.Reset()
		d.Negotiate(All)
		d.Write(RegDriverFeaturesSel, 0)
		d.Write(RegDriverFeatures, 0)
		c.Use(t, d)
	}},
	{"TR-09 resets in the middle of work", resetsInFlight},
	{"TR-09 resets by another vCPU", resetsByAnother},
	{"TR-10 a storm of kicks", func(t *testing.T, c Case, d *Driver) {
		for q := range d.kicks {
			d.Kick(q)
			d.Write(RegQueueNotify, uint32(q)) // before DRIVER_OK
		}
		d.Negotiate(All)
		for range 2000 {
			for q := range d.kicks {
				d.Write(RegQueueNotify, uint32(q))
			}
		}
		for q := range d.rings {
			if u := d.Completed(q); len(u) != 0 {
				t.Errorf("queue %d gave back %d chains that nobody made", q, len(u))
			}
		}
		c.Use(t, d)
	}},
}

// resetsInFlight resets a device that has work, again and again. Nothing piles up, and a reset device leaves its
// old rings alone.
func resetsInFlight(t *testing.T, c Case, d *Driver) {
	var before resources
	for i := range 100 {
		if i == 10 { // what the device makes once, it has made
			before = count(t)
		}
		d.Negotiate(All)
		for _, q := range c.Eager {
			for range 8 {
				d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
			}
		}
		rings := d.rings
		d.Reset()
		d.rings = rings
		old := d.shadowAll()
		for q := range rings {
			d.Kick(q)
			d.Write(RegQueueNotify, uint32(q))
		}
		if d.shadowAll() != old {
			t.Fatal("a reset device writes to memory")
		}
	}
	// Less than one for each reset: other tests' goroutines may come and go.
	if after := count(t); after.goroutines > before.goroutines+45 || after.files > before.files+45 {
		t.Errorf("90 resets: from %+v to %+v", before, after)
	}
}

// resetsByAnother lets two vCPUs write registers at the same time: one sets the device up, one resets it.
func resetsByAnother(t *testing.T, c Case, d *Driver) {
	var other sync.WaitGroup
	stop := make(chan struct{})
	other.Go(func() {
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d.Read(RegStatus)
			d.Write(RegQueueNotify, i%8)
			d.Write(RegInterruptACK, 3)
			if i%64 == 0 {
				d.Write(RegStatus, 0)
			}
		}
	})
	for range 100 {
		for _, v := range []uint32{1, 3} {
			d.Write(RegStatus, v)
		}
		d.Write(RegDriverFeaturesSel, 1)
		d.Write(RegDriverFeatures, 1)
		d.Write(RegStatus, 11)
		d.rings = nil
		for q, limit := range d.Dev.QueueSizes() {
			d.setUpQueue(q, min(limit, ringSize))
		}
		d.Write(RegStatus, 15)
		for _, q := range c.Eager {
			d.SubmitRaw(q, Desc{somewhere, 64, Next, 0x7fff})
		}
	}
	close(stop)
	other.Wait()
}

// resources are what a leak would take.
type resources struct{ goroutines, files int }

func count(t *testing.T) resources {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{runtime.NumGoroutine(), len(files)}
}
