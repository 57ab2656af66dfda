package block

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

const testSectors = 64

var testGeometry = geometry{sectors: testSectors, features: featureFlush | featureDiscard | featureWriteZeroes}

func header(kind uint32, sector uint64) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(b[0:], kind)
	binary.LittleEndian.PutUint64(b[8:], sector)
	return b
}

func rawSegment(sector uint64, sectors, flags uint32) []byte {
	b := make([]byte, segmentSize)
	binary.LittleEndian.PutUint64(b[0:], sector)
	binary.LittleEndian.PutUint32(b[8:], sectors)
	binary.LittleEndian.PutUint32(b[12:], flags)
	return b
}

func sectors(n int) []byte { return make([]byte, n*sectorSize) }

type parseCase struct {
	name               string
	readable, writable [][]byte
	want               verdict
	status             byte
}

func checkParse(t *testing.T, g geometry, cases []parseCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var r request
			v, status := r.parse(g, 1, c.readable, c.writable)
			if v != c.want || (v == verdictAnswer && status != c.status) {
				t.Errorf("verdict %d, status %d; want %d, %d", v, status, c.want, c.status)
			}
		})
	}
}

func TestBLK01_SectorAndLengthOverflow(t *testing.T) {
	one := [][]byte{{0xff}}
	out := func(sector uint64, bufs ...[]byte) [][]byte {
		return append([][]byte{header(typeOut, sector)}, bufs...)
	}
	checkParse(t, testGeometry, []parseCase{
		{"first sector", out(0, sectors(1)), one, verdictRun, 0},
		{"last sector", out(testSectors-1, sectors(1)), one, verdictRun, 0},
		{"whole disk", out(0, sectors(testSectors)), one, verdictRun, 0},
		{"nothing at the end", out(testSectors), one, verdictRun, 0},
		{"past the end", out(testSectors, sectors(1)), one, verdictAnswer, statusIOError},
		{"across the end", out(testSectors-1, sectors(2)), one, verdictAnswer, statusIOError},
		{"each fits, the sum does not", out(testSectors-2, sectors(1), sectors(1), sectors(1)), one, verdictAnswer, statusIOError},
		{"sector wraps in bytes", out(1<<55, sectors(1)), one, verdictAnswer, statusIOError},
		{"sector of all ones", out(math.MaxUint64, sectors(1)), one, verdictAnswer, statusIOError},
		{"sum wraps to 0", out(math.MaxUint64, sectors(1), sectors(1)), one, verdictAnswer, statusIOError},
		{"not whole sectors", out(0, make([]byte, 511)), one, verdictAnswer, statusIOError},
		{"whole only in sum", out(0, make([]byte, 100), make([]byte, 412)), one, verdictRun, 0},
		{"read past the end", [][]byte{header(typeIn, testSectors)}, [][]byte{sectors(1), {0}}, verdictAnswer, statusIOError},
		{"read of a sector less one byte", [][]byte{header(typeIn, 0)}, [][]byte{make([]byte, 511), {0}}, verdictAnswer, statusIOError},
		{"read with the status in the same buffer", [][]byte{header(typeIn, 0)}, [][]byte{make([]byte, 513)}, verdictRun, 0},
	})
}

func TestBLK02_SegmentOverflow(t *testing.T) {
	one := [][]byte{{0xff}}
	seg := func(kind uint32, s ...[]byte) [][]byte {
		return [][]byte{header(kind, 0), bytes.Join(s, nil)}
	}
	many := bytes.Repeat(rawSegment(0, 1, 0), maxSegments+1)
	for _, k := range []struct {
		name string
		kind uint32
	}{{"discard", typeDiscard}, {"write-zeroes", typeWriteZeroes}} {
		t.Run(k.name, func(t *testing.T) {
			checkParse(t, testGeometry, []parseCase{
				{"last sector", seg(k.kind, rawSegment(testSectors-1, 1, 0)), one, verdictRun, 0},
				{"as many as fit", seg(k.kind, many[segmentSize:]), one, verdictRun, 0},
				{"one more", seg(k.kind, many), one, verdictAnswer, statusIOError},
				{"across the end", seg(k.kind, rawSegment(testSectors-1, 2, 0)), one, verdictAnswer, statusIOError},
				{"second across the end", seg(k.kind, rawSegment(0, 1, 0), rawSegment(testSectors, 1, 0)), one, verdictAnswer, statusIOError},
				{"sector 2^64-1", seg(k.kind, rawSegment(math.MaxUint64, 1, 0)), one, verdictAnswer, statusIOError},
				{"both all ones", seg(k.kind, rawSegment(math.MaxUint64, math.MaxUint32, 0)), one, verdictAnswer, statusIOError},
				{"count of all ones", seg(k.kind, rawSegment(0, math.MaxUint32, 0)), one, verdictAnswer, statusIOError},
				{"sum wraps to 0", seg(k.kind, rawSegment(math.MaxUint64-7, 8, 0)), one, verdictAnswer, statusIOError},
				{"bytes wrap", seg(k.kind, rawSegment(1<<55, 1, 0)), one, verdictAnswer, statusIOError},
				{"reserved flag", seg(k.kind, rawSegment(0, 1, 2)), one, verdictAnswer, statusUnsupported},
				{"half a segment", [][]byte{header(k.kind, 0), rawSegment(0, 1, 0)[:8]}, one, verdictAnswer, statusIOError},
				{"no segment", [][]byte{header(k.kind, 0)}, one, verdictAnswer, statusIOError},
				{"room for data", seg(k.kind, rawSegment(0, 1, 0)), [][]byte{{0, 0}}, verdictAnswer, statusIOError},
			})
		})
	}
	checkParse(t, testGeometry, []parseCase{
		{"unmap in discard", seg(typeDiscard, rawSegment(0, 1, 1)), one, verdictAnswer, statusUnsupported},
		{"unmap in write-zeroes", seg(typeWriteZeroes, rawSegment(0, 1, 1)), one, verdictRun, 0},
	})
	checkParse(t, geometry{sectors: 1 << 40, features: testGeometry.features}, []parseCase{
		{"longest", seg(typeDiscard, rawSegment(0, maxSegmentSectors, 0)), one, verdictRun, 0},
		{"too long", seg(typeDiscard, rawSegment(0, maxSegmentSectors+1, 0)), one, verdictAnswer, statusIOError},
	})
	checkParse(t, geometry{sectors: testSectors}, []parseCase{
		{"discard not negotiated", seg(typeDiscard, rawSegment(0, 1, 0)), one, verdictAnswer, statusUnsupported},
		{"write-zeroes not negotiated", seg(typeWriteZeroes, rawSegment(0, 1, 0)), one, verdictAnswer, statusUnsupported},
	})
}

// However many segments a guest sends, no more than there is room for are taken, and none of a request with too many.
func TestDEV02_SegmentCount(t *testing.T) {
	for n := range 4 * maxSegments {
		var r request
		v, _ := r.parse(testGeometry, 0, [][]byte{header(typeDiscard, 0), bytes.Repeat(rawSegment(0, 1, 0), n)}, [][]byte{{0}})
		if fits := n > 0 && n <= maxSegments; (v == verdictRun) != fits || (fits && r.count != n) || (!fits && r.count != 0) {
			t.Errorf("%d segments: verdict %d, %d taken", n, v, r.count)
		}
	}
}

func TestBLK03_ReadOnlyParse(t *testing.T) {
	g := testGeometry
	g.readOnly = true
	one := [][]byte{{0xff}}
	checkParse(t, g, []parseCase{
		{"write", [][]byte{header(typeOut, 0), sectors(1)}, one, verdictAnswer, statusIOError},
		{"discard", [][]byte{header(typeDiscard, 0), rawSegment(0, 1, 0)}, one, verdictAnswer, statusIOError},
		{"write-zeroes", [][]byte{header(typeWriteZeroes, 0), rawSegment(0, 1, 0)}, one, verdictAnswer, statusIOError},
		{"flush with data", [][]byte{header(typeFlush, 0), sectors(1)}, one, verdictAnswer, statusIOError},
		{"flush", [][]byte{header(typeFlush, 0)}, one, verdictRun, 0},
		{"read", [][]byte{header(typeIn, 0)}, [][]byte{sectors(1), {0}}, verdictRun, 0},
	})
}

func TestBLK06_UnknownTypes(t *testing.T) {
	for _, kind := range []uint32{2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 1 << 31, 1<<31 | typeOut, math.MaxUint32} {
		var r request
		v, status := r.parse(testGeometry, 0, [][]byte{header(kind, 0), sectors(1)}, [][]byte{{0xff}})
		if v != verdictAnswer || status != statusUnsupported {
			t.Errorf("type %#x: verdict %d, status %d", kind, v, status)
		}
	}
}

func TestQ13_DirectionsMixedUp(t *testing.T) {
	one := [][]byte{{0xff}}
	checkParse(t, testGeometry, []parseCase{
		{"no writable buffer", [][]byte{header(typeIn, 0), sectors(1)}, nil, verdictMalformed, 0},
		{"only empty writable buffers", [][]byte{header(typeIn, 0)}, [][]byte{{}, {}}, verdictMalformed, 0},
		{"no readable buffer", nil, [][]byte{sectors(1), {0}}, verdictAnswer, statusIOError},
		{"short header", [][]byte{header(typeIn, 0)[:15]}, one, verdictAnswer, statusIOError},
		{"read into a readable buffer", [][]byte{header(typeIn, 0), sectors(1)}, one, verdictAnswer, statusIOError},
		{"write from a writable buffer", [][]byte{header(typeOut, 0)}, [][]byte{sectors(1), {0}}, verdictAnswer, statusIOError},
		{"flush with room", [][]byte{header(typeFlush, 0)}, [][]byte{sectors(1), {0}}, verdictAnswer, statusIOError},
		{"id with data", [][]byte{header(typeGetID, 0), {1}}, [][]byte{make([]byte, 21)}, verdictAnswer, statusIOError},
		{"id without room", [][]byte{header(typeGetID, 0)}, [][]byte{make([]byte, 20)}, verdictAnswer, statusIOError},
	})
}

// split cuts b at random places, empty pieces among them; the pieces share b's memory.
func split(rng *rand.Rand, b []byte) (pieces [][]byte) {
	for len(b) > 0 {
		n := rng.IntN(min(len(b), 700) + 1)
		pieces = append(pieces, b[:n:n])
		b = b[n:]
	}
	return append(pieces, nil)
}

// Any framing of the same bytes must mean the same, virtio 1.2 §2.7.4.1.
func TestFramingMeansNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		data := make([]byte, sectorSize*(1+rng.IntN(8)))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		request1 := append(header(typeOut, 3), data...)
		status := []byte{0xff}
		var r request
		if v, _ := r.parse(testGeometry, 0, split(rng, request1), split(rng, status)); v != verdictRun {
			t.Fatalf("write: verdict %d", v)
		}
		if got := bytes.Join(r.bufs, nil); !bytes.Equal(got, data) || r.offset != 3*sectorSize {
			t.Fatalf("write of %d bytes became %d at %d", len(data), len(got), r.offset)
		}
		if n := r.finish(statusOK); n != 1 || status[0] != statusOK {
			t.Fatalf("write: reported %d, status %d", n, status[0])
		}

		room := make([]byte, len(data)+1)
		if v, _ := r.parse(testGeometry, 0, split(rng, header(typeIn, 3)), split(rng, room)); v != verdictRun {
			t.Fatalf("read: verdict %d", v)
		}
		for left := data; len(left) > 0; { // as a backend that moves a little at a time
			n := copy(r.bufs[0], left[:min(len(left), 1+rng.IntN(600))])
			left = left[n:]
			r.advance(uint64(n))
		}
		if n := r.finish(statusOK); int(n) != len(room) || !bytes.Equal(room[:len(data)], data) || room[len(data)] != statusOK {
			t.Fatalf("read: reported %d of %d", n, len(room))
		}
	}
}

func TestQ15_ReportedLength(t *testing.T) {
	var r request
	room := make([]byte, 2*sectorSize+1)
	r.parse(testGeometry, 0, [][]byte{header(typeIn, 0)}, [][]byte{room})
	r.advance(100)
	if n := r.finish(statusIOError); n != 100 {
		t.Errorf("read that failed after 100 bytes: reported %d", n)
	}
	r.parse(testGeometry, 0, [][]byte{header(typeGetID, 0)}, [][]byte{make([]byte, 512)})
	r.advance(idSize)
	if n := r.finish(statusOK); n != idSize {
		t.Errorf("id in a buffer with room to spare: reported %d", n)
	}
	r.parse(testGeometry, 0, nil, [][]byte{room})
	if n := r.finish(statusIOError); n != 0 {
		t.Errorf("no header: reported %d", n)
	}
	r.parse(testGeometry, 0, [][]byte{header(99, 0)}, [][]byte{{0}})
	if n := r.finish(statusUnsupported); n != 1 {
		t.Errorf("unknown type: reported %d", n)
	}
}

func TestQ10_HeaderIsReadOnce(t *testing.T) {
	h := header(typeIn, 5)
	var r request
	r.parse(testGeometry, 0, [][]byte{h}, [][]byte{sectors(1), {0}})
	copy(h, header(typeOut, math.MaxUint64))
	if r.kind != typeIn || r.offset != 5*sectorSize {
		t.Errorf("request changed with guest memory: type %d at %d", r.kind, r.offset)
	}
	s := rawSegment(1, 1, 0)
	r.parse(testGeometry, 0, [][]byte{header(typeDiscard, 0), s}, [][]byte{{0}})
	copy(s, rawSegment(math.MaxUint64, math.MaxUint32, 0))
	if r.segments[0] != (segment{sectorSize, sectorSize, false}) {
		t.Errorf("segment changed with guest memory: %+v", r.segments[0])
	}
}

func FuzzBlockRequest(f *testing.F) {
	f.Add(append(header(typeIn, 0), 1, 2, 3), uint16(513), false, uint64(7))
	f.Add(append(header(typeOut, 63), sectors(1)...), uint16(1), false, uint64(0))
	f.Add(append(header(typeDiscard, 0), rawSegment(63, 1, 0)...), uint16(1), false, uint64(3))
	f.Add(append(header(typeWriteZeroes, 0), rawSegment(math.MaxUint64, 1, 1)...), uint16(1), false, uint64(3))
	f.Add(header(typeGetID, 0), uint16(21), true, uint64(9))
	f.Add(header(typeFlush, 0), uint16(1), true, uint64(9))
	var r request
	f.Fuzz(func(t *testing.T, readable []byte, room uint16, readOnly bool, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		g := testGeometry
		g.readOnly = readOnly
		room %= 2048
		writable := make([]byte, room)
		v, status := r.parse(g, 0, split(rng, readable), split(rng, writable))
		if (v == verdictMalformed) != (room == 0) {
			t.Fatalf("verdict %d with room for %d bytes", v, room)
		}
		if v != verdictRun {
			if v == verdictAnswer && (status == statusOK || r.finish(status) > uint32(room)) {
				t.Fatalf("answer with status %d", status)
			}
			return
		}
		const size = testSectors * sectorSize
		if r.offset < 0 || r.offset > size || (r.kind != typeGetID && r.left > uint64(size-r.offset)) || r.left != total(r.bufs) {
			t.Fatalf("%d bytes at %d of %d", r.left, r.offset, size)
		}
		for _, s := range r.segments[:r.count] {
			if s.offset < 0 || s.length < 0 || s.offset > size-s.length {
				t.Fatalf("segment %+v", s)
			}
		}
		if readOnly && (r.kind == typeOut || r.count > 0) {
			t.Fatalf("type %d on a read-only disk", r.kind)
		}
		for r.left > 0 {
			r.advance(1 + rng.Uint64N(r.left))
		}
		if n := r.finish(statusOK); n == 0 || n > uint32(room) {
			t.Fatalf("reported %d bytes of %d", n, room)
		}
	})
}
