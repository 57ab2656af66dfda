package balloon

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
)

func rawPFNs(pfns ...uint32) (b []byte) {
	for _, p := range pfns {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	return b
}

func rawStat(tag uint16, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), v)
}

func TestBAL01_PageNumbers(t *testing.T) {
	for _, c := range []struct {
		name     string
		readable [][]byte
		want     []uint32
		rest     bool
	}{
		{"none", nil, nil, false},
		{"sorted, once", [][]byte{rawPFNs(5, 3, 4, 3)}, []uint32{3, 4, 5}, false},
		{"odd length", [][]byte{append(rawPFNs(7), 1, 2, 3)}, []uint32{7}, false},
		{"split inside a number", [][]byte{rawPFNs(0x01020304)[:1], rawPFNs(0x01020304)[1:]}, []uint32{0x01020304}, false},
		{"all ones", [][]byte{rawPFNs(math.MaxUint32, 0)}, []uint32{0, math.MaxUint32}, false},
		{"as many as fit", [][]byte{make([]byte, 4*maxPFNs)}, []uint32{0}, false},
		{"one more", [][]byte{make([]byte, 4*maxPFNs+4)}, []uint32{0}, true},
		{"64 MiB of them", [][]byte{make([]byte, 64<<20)}, []uint32{0}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pages
			got, rest := p.parse(c.readable)
			if !slices.Equal(got, c.want) || rest != c.rest {
				t.Errorf("%v, rest %v; want %v, %v", got, rest, c.want, c.rest)
			}
		})
	}
}

func TestRuns(t *testing.T) {
	pfns := []uint32{0, 1, 2, 9, math.MaxUint32 - 1, math.MaxUint32}
	var got []span
	for len(pfns) > 0 {
		s, n := run(pfns)
		got = append(got, s)
		pfns = pfns[n:]
	}
	want := []span{{0, 0x3000}, {0x9000, 0xa000}, {0xffff_fffe << 12, 0x1_0000_0000 << 12}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestBAL01_Statistics(t *testing.T) {
	s := parseStats([][]byte{rawStat(4, 1<<20), rawStat(5, math.MaxUint64), rawStat(77, 1), rawStat(math.MaxUint16, 1), {1, 2, 3}})
	if v, ok := s.Get(StatFree); !ok || v != 1<<20 {
		t.Errorf("free: %d, %v", v, ok)
	}
	if v, ok := s.Get(StatTotal); !ok || v != math.MaxUint64 {
		t.Errorf("total: %d, %v", v, ok)
	}
	if _, ok := s.Get(StatCaches); ok {
		t.Error("caches were not sent")
	}
	if _, ok := s.Get(77); ok {
		t.Error("tag 77 is not known")
	}
	if m := s.Map(); len(m) != 2 || m["free"] != 1<<20 {
		t.Errorf("%v", m)
	}
	// More than is ever read.
	var many []byte
	for range maxStats {
		many = append(many, rawStat(0, 1)...)
	}
	many = append(many, rawStat(1, 2)...)
	if m := parseStats([][]byte{many, make([]byte, 64<<20)}).Map(); len(m) != 1 {
		t.Errorf("%v", m)
	}
}

func TestRingsAreKept(t *testing.T) {
	own := []span{{0x1000, 0x3000}, {0x8000, 0x9000}}
	for _, c := range []struct {
		s    span
		want bool
	}{
		{span{0, 0x1000}, false}, {span{0, 0x1001}, true}, {span{0x2fff, 0x4000}, true}, {span{0x3000, 0x8000}, false},
		{span{0, 1 << 40}, true}, {span{0x8fff, 0x9000}, true}, {span{0x9000, 0xa000}, false},
	} {
		if got := overlaps(own, c.s); got != c.want {
			t.Errorf("%x: %v", c.s, got)
		}
	}
}

func FuzzBalloon(f *testing.F) {
	f.Add(rawPFNs(1, 2, 3, 9), uint16(5), true)
	f.Add(append(rawStat(0, 1), rawStat(9, 2)...), uint16(3), false)
	var p pages
	f.Fuzz(func(t *testing.T, raw []byte, cut uint16, inflate bool) {
		n := min(int(cut), len(raw))
		chain := [][]byte{raw[:n], raw[n:]}
		if !inflate {
			for name := range parseStats(chain).Map() {
				if !slices.Contains(statNames[:], name) {
					t.Fatal(name)
				}
			}
			return
		}
		pfns, rest := p.parse(chain)
		if rest != (len(raw)/4 > maxPFNs) || len(pfns) > maxPFNs {
			t.Fatalf("%d numbers of %d bytes, rest %v", len(pfns), len(raw), rest)
		}
		seen, last := 0, uint64(0)
		for left := pfns; len(left) > 0; {
			s, n := run(left)
			if n < 1 || s.from < last || s.to-s.from != uint64(n)*PageSize {
				t.Fatalf("range %x of %d after %x", s, n, last)
			}
			last, seen, left = s.to, seen+n, left[n:]
		}
		if seen != len(pfns) {
			t.Fatalf("%d of %d", seen, len(pfns))
		}
	})
}
