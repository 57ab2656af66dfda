package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/virtio/queue"
	"spore/virtio/rate"
)

const allFeatures = featureFlush | featureDiscard | featureWriteZeroes

func newDevice(t testing.TB, cfg Config) *Device {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newImage makes a file of n bytes and opens it as a Backend.
func newImage(t testing.TB, n int64) (b *File, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	if b, err = NewFile(f, false); err != nil {
		t.Fatal(err)
	}
	return b, path
}

func TestDeviceOnFile(t *testing.T) {
	b, path := newImage(t, testSectors*sectorSize+100)
	d := newDevice(t, Config{Backend: b, ID: "spore-disk-0"})
	r := newRing(t)
	r.run(d, allFeatures, nil)

	data := bytes.Repeat([]byte("0123456789abcdef"), 2*sectorSize/16)
	if status, _, n := r.do(typeOut, 5, data, 0); status != statusOK || n != 1 {
		t.Errorf("write: status %d, reported %d", status, n)
	}
	status, in, n := r.do(typeIn, 4, nil, 3*sectorSize)
	if status != statusOK || n != 3*sectorSize+1 || !bytes.Equal(in, append(sectors(1), data...)) {
		t.Errorf("read: status %d, reported %d", status, n)
	}
	if status, _, n := r.do(typeFlush, 0, nil, 0); status != statusOK || n != 1 {
		t.Errorf("flush: status %d, reported %d", status, n)
	}
	if status, in, n := r.do(typeGetID, 0, nil, idSize); status != statusOK || n != idSize+1 || string(bytes.TrimRight(in, "\x00")) != "spore-disk-0" {
		t.Errorf("id: status %d, reported %d: %q", status, n, in)
	}
	if status, _, _ := r.do(typeWriteZeroes, 0, rawSegment(5, 1, segmentUnmap), 0); status != statusOK {
		t.Errorf("write-zeroes: status %d", status)
	}
	if status, _, _ := r.do(typeDiscard, 0, rawSegment(0, 5, 0), 0); status != statusOK {
		t.Errorf("discard: status %d", status)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(image) != testSectors*sectorSize+100 || !bytes.Equal(image[5*sectorSize:8*sectorSize], append(sectors(1), append(data[sectorSize:], sectors(1)...)...)) {
		t.Error("the image holds something else")
	}
	// The bytes after the last whole sector are not reachable.
	if status, _, _ := r.do(typeIn, testSectors, nil, sectorSize); status != statusIOError {
		t.Errorf("read of the rest: status %d", status)
	}
}

func TestConfigSpace(t *testing.T) {
	b, _ := newImage(t, 1<<20)
	d := newDevice(t, Config{Backend: b, Queues: 3})
	p := make([]byte, configSize+8)
	d.ReadConfig(p, 0)
	le := binary.LittleEndian
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"capacity", le.Uint64(p), 2048},
		{"seg_max", uint64(le.Uint32(p[12:])), 254},
		{"blk_size", uint64(le.Uint32(p[20:])), 512},
		{"num_queues", uint64(le.Uint16(p[34:])), 3},
		{"max_discard_sectors", uint64(le.Uint32(p[36:])), 1 << 21},
		{"max_discard_seg", uint64(le.Uint32(p[40:])), 16},
		{"discard_sector_alignment", uint64(le.Uint32(p[44:])), 1},
		{"max_write_zeroes_sectors", uint64(le.Uint32(p[48:])), 1 << 21},
		{"max_write_zeroes_seg", uint64(le.Uint32(p[52:])), 16},
		{"write_zeroes_may_unmap", uint64(p[56]), 1},
		{"past the end", le.Uint64(p[60:]), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, want %d", c.name, c.got, c.want)
		}
	}
	d.WriteConfig([]byte{9, 9, 9, 9, 9, 9, 9, 9}, 0)
	q := []byte{1, 2, 3, 4}
	d.ReadConfig(q, 1<<31)
	if !bytes.Equal(q, make([]byte, 4)) {
		t.Errorf("far past the end: %x", q)
	}
	d.ReadConfig(q, 1)
	if le.Uint32(q) != 2048>>8 {
		t.Errorf("capacity after the write and unaligned: %x", q)
	}
	ro := newDevice(t, Config{Backend: b, ReadOnly: true})
	if ro.Features()&(featureDiscard|featureWriteZeroes) != 0 || ro.Features()&featureReadOnly == 0 {
		t.Errorf("features of a read-only disk: %#x", ro.Features())
	}
}

func TestBLK03_ReadOnlyDisk(t *testing.T) {
	_, path := newImage(t, 1<<20)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := NewFile(f, true)
	if err != nil {
		t.Fatal(err)
	}
	// A device that forgot that it is read-only is still stopped by its descriptor.
	for _, readOnly := range []bool{true, false} {
		r := newRing(t)
		stop := r.run(newDevice(t, Config{Backend: b, ReadOnly: readOnly}), allFeatures, nil)
		for kind, out := range map[uint32][]byte{typeOut: bytes.Repeat([]byte{1}, sectorSize), typeDiscard: rawSegment(0, 1, 0), typeWriteZeroes: rawSegment(0, 1, 0)} {
			if status, _, _ := r.do(kind, 0, out, 0); status != statusIOError {
				t.Errorf("type %d, read-only %v: status %d", kind, readOnly, status)
			}
		}
		if status, _, _ := r.do(typeIn, 0, nil, sectorSize); status != statusOK {
			t.Errorf("read: status %d", status)
		}
		stop()
	}
	if image, _ := os.ReadFile(path); !bytes.Equal(image, make([]byte, 1<<20)) {
		t.Error("the image was written to")
	}
}

// A guest that writes the header of another image format stays on a raw disk: the file is what it was opened as,
// nothing else is opened, over a restart and a restore too.
func TestBLK04_RawStaysRaw(t *testing.T) {
	b, path := newImage(t, 1<<20)
	qcow := make([]byte, sectorSize)
	copy(qcow, "QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x70\x00\x00\x00\x0b")
	copy(qcow[0x70:], "/etc/passwd")
	before := openFiles(t)
	var state []byte
	for round := range 3 {
		d := newDevice(t, Config{Backend: b})
		if state != nil {
			if err := d.LoadState(state); err != nil {
				t.Fatal(err)
			}
		}
		r := newRing(t)
		stop := r.run(d, allFeatures, nil)
		if round == 0 {
			if status, _, _ := r.do(typeOut, 0, qcow, 0); status != statusOK {
				t.Fatalf("write: status %d", status)
			}
		}
		status, in, _ := r.do(typeIn, 0, nil, 2*sectorSize)
		if status != statusOK || !bytes.Equal(in, append(qcow[:sectorSize:sectorSize], sectors(1)...)) {
			t.Errorf("round %d: sector 0 is not what was written: status %d", round, status)
		}
		stop()
		var err error
		if state, err = d.SaveState(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("open files went from %d to %d", before, after)
	}
	if image, _ := os.ReadFile(path); len(image) != 1<<20 || !bytes.Equal(image[:sectorSize], qcow) {
		t.Error("the image is not raw")
	}
}

// openFiles counts the regular files this process has open.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if path, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "/proc") {
			n++
		}
	}
	return n
}

func TestQ07_HeadInFlightTwice(t *testing.T) {
	b, _ := newImage(t, 1<<20)
	r := newRing(t)
	stop := r.run(newDevice(t, Config{Backend: b}), allFeatures, nil)
	in := r.put(0, typeFlush, 0, nil, 0) // goes to a worker
	r.submit(0, 0)
	// Either the first was complete before the second was looked at, which is no fault, or the ring is broken.
	first, _ := r.wait()
	if first != 0 || in[0] != statusOK {
		t.Errorf("slot %d, status %d", first, in[0])
	}
	if err := stop(); err != nil && !errors.Is(err, queue.ErrRing) {
		t.Error(err)
	}
}

func TestQ14_MalformedChains(t *testing.T) {
	b, _ := newImage(t, 1<<20)
	d := newDevice(t, Config{Backend: b})
	r := newRing(t)
	r.run(d, allFeatures, nil)
	r.put(0, typeIn, 0, nil, sectorSize)
	r.describe(0, 1, 1<<40, sectorSize+1, 2) // outside RAM
	r.put(1, typeIn, 0, nil, sectorSize)
	r.describe(1, 0, ringSlots, headerSize, 0) // nothing writable
	r.put(2, typeIn, 0, nil, sectorSize)
	r.describe(2, 1, ringUsed, sectorSize+1, 2) // into the ring
	in := r.put(3, typeIn, 0, nil, sectorSize)
	r.submit(0, 1, 2, 3)
	for want := range 4 {
		slot, n := r.wait()
		if slot != want || (want < 3 && n != 0) || (want == 3 && (n != sectorSize+1 || in[sectorSize] != statusOK)) {
			t.Errorf("chain %d: slot %d, reported %d", want, slot, n)
		}
	}
	if n := d.Counters()["malformed"]; n != 3 {
		t.Errorf("%d counted as malformed", n)
	}
}

func TestState(t *testing.T) {
	b, _ := newImage(t, 1<<20)
	d := newDevice(t, Config{Backend: b})
	good, err := d.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.LoadState(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "{", "[]", "{}", strings.Replace(string(good), "2048", "2049", 1), strings.Replace(string(good), "false", "true", 1)} {
		if err := d.LoadState([]byte(bad)); err == nil {
			t.Errorf("loaded %q", bad)
		}
	}
	for name, cfg := range map[string]Config{
		"no backend":    {},
		"long id":       {Backend: b, ID: strings.Repeat("x", MaxIDLen+1)},
		"queues":        {Backend: b, Queues: 17},
		"negative rate": {Backend: b, Rate: rate.Rate{OpsPerSecond: -1}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
