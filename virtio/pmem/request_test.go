package pmem

import (
	"bytes"
	"testing"
)

func TestHandle(t *testing.T) {
	ok, bad := []byte{0, 0, 0, 0}, []byte{0xff, 0xff, 0xff, 0xff}
	for _, c := range []struct {
		name     string
		readable [][]byte
		writable [][]byte
		want     []byte // the answer; nil is none
	}{
		{"flush", [][]byte{{0, 0, 0, 0}}, [][]byte{make([]byte, 4)}, ok},
		{"flush, split", [][]byte{{0}, {}, {0, 0}, {0}}, [][]byte{{9}, {}, {9, 9, 9}}, ok},
		{"flush, longer", [][]byte{{0, 0, 0, 0, 7}}, [][]byte{make([]byte, 4)}, ok},
		{"another type", [][]byte{{1, 0, 0, 0}}, [][]byte{make([]byte, 4)}, bad},
		{"high bytes count", [][]byte{{0, 0, 0, 1}}, [][]byte{make([]byte, 4)}, bad},
		{"short", [][]byte{{0, 0, 0}}, [][]byte{make([]byte, 4)}, bad},
		{"nothing", nil, [][]byte{make([]byte, 4)}, bad},
		{"no room", [][]byte{{0, 0, 0, 0}}, [][]byte{make([]byte, 3)}, nil},
		{"no writable buffer", [][]byte{{0, 0, 0, 0}}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, _ := handle(c.readable, c.writable)
			if int(n) != len(c.want) || !bytes.Equal(bytes.Join(c.writable, nil)[:n], c.want) {
				t.Errorf("answered %d bytes: %x", n, bytes.Join(c.writable, nil))
			}
		})
	}
}

func FuzzPmem(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0}, uint8(4), uint8(1), uint8(2))
	f.Add([]byte{1, 0, 0, 0, 9}, uint8(9), uint8(0), uint8(0))
	f.Add([]byte{}, uint8(0), uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, readable []byte, room, cutR, cutW uint8) {
		writable := make([]byte, room)
		r, w := min(int(cutR), len(readable)), min(int(cutW), len(writable))
		n, ok := handle([][]byte{readable[:r], readable[r:]}, [][]byte{writable[:w:w], writable[w:]})
		flush := len(readable) >= 4 && bytes.Equal(readable[:4], make([]byte, 4))
		switch {
		case int(n) > len(writable):
			t.Fatalf("%d bytes of %d", n, len(writable))
		case len(writable) < 4 && (n != 0 || ok):
			t.Fatalf("answered %d bytes into %d", n, len(writable))
		case len(writable) >= 4 && ok != flush:
			t.Fatalf("%x: %v", readable, ok)
		}
	})
}
