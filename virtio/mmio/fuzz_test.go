package mmio_test

import (
	"encoding/binary"
	"math/rand"
	"testing"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/mmio"
	"spore/virtio/rng"
)

// FuzzMMIO plays sequences of register accesses of every width, as a hostile driver would. No access panics or
// hangs, and the status register only ever shows a legal state.
func FuzzMMIO(f *testing.F) {
	access := func(off uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(nil, off), v)
	}
	var good []byte
	for _, a := range [][2]uint32{{0x70, 1}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x70, 11}, {0x30, 0}, {0x38, 8}, {0x80, 0x1000}, {0x90, 0x2000}, {0xa0, 0x3000}, {0x44, 1}, {0x70, 15}, {0x50, 0}, {0x70, 0}} {
		good = append(good, access(uint16(a[0]), a[1])...)
	}
	f.Add(good)
	f.Add(access(0x50, 0xffffffff))
	host, err := guestmem.MapAnon(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	mem, err := guestmem.New(guestmem.Region{Host: host})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, moves []byte) {
		bus := mmio.New(mmio.Config{Device: rng.New(rand.New(rand.NewSource(1))), Mem: mem, Interrupt: func() {}})
		for ; len(moves) >= 6; moves = moves[6:] {
			off := uint64(binary.LittleEndian.Uint16(moves))
			width := 4
			if off&0x8000 != 0 {
				width = 1 << (off >> 12 & 3)
			}
			off &= 0xfff
			bus.Write(off, append(moves[2:6:6], 0, 0, 0, 0)[:width])
			var b [8]byte
			bus.Read(off, b[:width])
			bus.Read(0x70, b[:4])
			switch status := binary.LittleEndian.Uint32(b[:]) &^ (virtio.StatusNeedsReset | virtio.StatusFailed); status {
			case 0, 1, 3, 11, 15:
			default:
				t.Fatalf("status %#x", status)
			}
		}
		if bus.Counters()["transport_panics"] != 0 {
			t.Fatal("the device model panicked")
		}
		if err := bus.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := bus.SaveState(); err != nil {
			t.Fatal(err)
		}
	})
}
