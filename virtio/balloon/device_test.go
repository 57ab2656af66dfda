package balloon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
)

func TestInflateAndDeflate(t *testing.T) {
	b := new(discards)
	d := newDevice(t, b)
	g := newGuest(t)
	g.run(d, featureDeflateOnOOM, 0, 1)
	// Out of order, twice, across two regions that touch, and in the region above 4 GiB.
	g.send(0, rawPFNs(600, 602, 601, 600, 1023, 1024, farBase>>12))
	g.wait(0)
	want := []span{{600 << 12, 603 << 12}, {1023 << 12, 1025 << 12}, {farBase, farBase + 4096}}
	if got := b.take(); !slices.Equal(got, want) {
		t.Errorf("discarded %x, want %x", got, want)
	}
	g.send(1, rawPFNs(600, 601))
	g.wait(1)
	if got := b.take(); got != nil {
		t.Errorf("deflate discarded %x", got)
	}
	c := d.Counters()
	if c["inflated_pages"] != 6 || c["deflated_pages"] != 2 {
		t.Errorf("%v", c)
	}
}

func TestBAL01_HostileInflate(t *testing.T) {
	b := new(discards)
	d := newDevice(t, b)
	g := newGuest(t)
	stop := g.run(d, 0, 0, 1)
	g.send(0, append(rawPFNs(math.MaxUint32, 2*ramSize>>12, (farBase+ramSize)>>12, 0, 4, 8, ringStep>>12, 700), 1, 2, 3))
	g.wait(0)
	if got, want := b.take(), []span{{700 << 12, 701 << 12}}; !slices.Equal(got, want) {
		t.Errorf("discarded %x, want %x", got, want)
	}
	c := d.Counters()
	// Pages 0, 4, 8 and the one at ringStep hold the rings of the two queues.
	if c["outside"] != 3 || c["own_ring"] != 4 || c["inflated_pages"] != 1 {
		t.Errorf("%v", c)
	}
	// As long as a chain can be: it is cut, and the device goes on.
	g.submit(0, buffer{bufferAt, ramSize - bufferAt, false}, buffer{ramSize, ramSize, false})
	g.wait(0)
	if n := d.Counters()["oversized"]; n != 1 {
		t.Errorf("%d chains counted as oversized", n)
	}
	b.take()
	// 4 GiB, and outside memory.
	g.submit(0, buffer{bufferAt, math.MaxUint32, false})
	g.wait(0)
	g.submit(1, buffer{1 << 60, 4, false})
	g.wait(1)
	if n := d.Counters()["malformed"]; n != 2 {
		t.Errorf("%d chains counted as malformed", n)
	}
	// The wrong direction is nothing to read.
	g.submit(0, buffer{bufferAt, 64, true})
	g.wait(0)
	before := d.Counters()["inflated_pages"]
	b.refuse(errors.New("no"))
	g.send(0, rawPFNs(701, 702, 900))
	g.wait(0)
	if c := d.Counters(); c["failed"] != 2 || c["inflated_pages"] != before {
		t.Errorf("%v", c)
	}
	if err := stop(); err != nil || g.states[0].NextAvail != g.states[0].NextUsed {
		t.Errorf("took %d chains, gave %d back: %v", g.states[0].NextAvail, g.states[0].NextUsed, err)
	}
}

// Free page reporting works whichever number the driver gives the queue.
func TestReporting(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		queue    int
	}{
		{"as Linux numbers it", featureStats | featureReporting, 3},
		{"without statistics", featureReporting, 2},
		{"as the text numbers it", featureStats | featureReporting, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := new(discards)
			d := newDevice(t, b)
			g := newGuest(t)
			g.run(d, c.features, 0, 1, c.queue)
			g.submit(c.queue,
				buffer{2 << 20, 1 << 20, true},      // as drivers do
				buffer{farBase, 2 << 20, true},      //
				buffer{3<<20 + 1, 3 * 4096, true},   // only the whole pages inside
				buffer{3 << 20, 4095, true},         // none
				buffer{ringsEnd - 4096, 4096, true}, // not a ring, only near one
			)
			g.wait(c.queue)
			want := []span{{2 << 20, 3 << 20}, {farBase, farBase + 2<<20}, {3<<20 + 4096, 3<<20 + 3*4096}, {ringsEnd - 4096, ringsEnd}}
			if got := b.take(); !slices.Equal(got, want) {
				t.Errorf("discarded %x, want %x", got, want)
			}
			g.submit(c.queue, buffer{0x9000, ramSize - 0x9000, true}) // over the rings of the queue: the chain is refused
			g.wait(c.queue)
			g.submit(c.queue, buffer{2 << 20, 4096, false}) // readable buffers report nothing
			g.wait(c.queue)
			if got := b.take(); got != nil {
				t.Errorf("discarded %x", got)
			}
			if n := d.Counters()["reported_pages"]; n != 256+512+2+1 {
				t.Errorf("%d pages reported", n)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	d := newDevice(t, new(discards))
	if err := d.SetTarget(3*ramSize + PageSize); err == nil {
		t.Error("a target beyond RAM was taken")
	}
	if err := d.SetTarget(1 << 20); err != nil { // nobody listens yet
		t.Fatal(err)
	}
	g := newGuest(t)
	stop := g.run(d, 0, 0, 1)
	change := func() {
		t.Helper()
		select {
		case <-g.changes:
		case <-time.After(patience):
			t.Fatal("the driver was not told")
		}
	}
	change()
	p := make([]byte, 20)
	d.ReadConfig(p, 0)
	if binary.LittleEndian.Uint32(p) != 256 {
		t.Errorf("config: %x", p)
	}
	if err := d.SetTarget(2<<20 + 5); err != nil {
		t.Fatal(err)
	}
	change()
	if err := d.SetTarget(2 << 20); err != nil { // the same number of pages: nothing to tell
		t.Fatal(err)
	}
	d.WriteConfig([]byte{9, 1, 0, 0}, 4)
	d.WriteConfig([]byte{1, 1, 1, 1}, 0)             // num_pages is not the driver's
	d.WriteConfig([]byte{1, 1, 1, 1, 1, 1, 1, 1}, 4) // nor is what follows
	d.WriteConfig([]byte{1, 1}, 4)
	if target, actual := d.Size(); target != 2<<20 || actual != 265*PageSize {
		t.Errorf("target %d, actual %d", target, actual)
	}
	stop()
	if len(g.changes) != 0 {
		t.Errorf("%d more changes told", len(g.changes))
	}
	state, err := d.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	other := newDevice(t, new(discards))
	if err := other.LoadState(state); err != nil {
		t.Fatal(err)
	}
	if target, actual := other.Size(); target != 2<<20 || actual != 265*PageSize {
		t.Errorf("loaded: target %d, actual %d", target, actual)
	}
	for _, bad := range []string{"", "{", `{"target":1000000}`, `{"target":-1}`} {
		if err := other.LoadState([]byte(bad)); err == nil {
			t.Errorf("loaded %q", bad)
		}
	}
}

func TestMemoryBackend(t *testing.T) {
	g := newGuest(t)
	fill := func(b []byte) { copy(b, bytes.Repeat([]byte{1}, len(b))) }
	for _, r := range g.mem.Regions() {
		fill(r.Host)
	}
	m := NewMemory(g.mem, false)
	if err := m.Discard(ramSize-4096, 8192); err != nil { // across regions that touch
		t.Fatal(err)
	}
	low, high := g.mem.Regions()[0].Host, g.mem.Regions()[1].Host
	if low[ramSize-4097] != 1 || low[ramSize-4096] != 0 || high[4095] != 0 || high[4096] != 1 {
		t.Error("something else was discarded")
	}
	if err := m.Discard(2*ramSize, 4096); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("outside: %v", err)
	}
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	shared, err := guestmem.MapFile(f, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer guestmem.Unmap(shared)
	fill(shared)
	mem, err := guestmem.New(guestmem.Region{Host: shared})
	if err != nil {
		t.Fatal(err)
	}
	if err := NewMemory(mem, true).Discard(0, 4096); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 4097); shared[0] != 0 || shared[4096] != 1 {
		t.Error("something else was discarded")
	} else if _, err := f.ReadAt(b, 0); err != nil || b[0] != 0 || b[4096] != 1 {
		t.Errorf("the file holds something else: %v", err)
	}
}
