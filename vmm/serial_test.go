package vmm

import (
	"bytes"
	"testing"
)

func TestSerial(t *testing.T) {
	var out bytes.Buffer
	interrupts := 0
	s := &serial{out: &out, interrupt: func() { interrupts++ }}
	read := func(off uint64) byte {
		var b [1]byte
		s.Read(off, b[:])
		return b[0]
	}
	write := func(off uint64, v byte) { s.Write(off, []byte{v}) }
	write(serialLCR, lcrDivisor)
	write(serialData, 12)
	write(serialIER, 1)
	if read(serialData) != 12 || read(serialIER) != 1 {
		t.Error("divisor is not kept")
	}
	write(serialLCR, 3)
	for _, c := range []byte("hi") {
		if read(serialLSR)&lsrEmpty != lsrEmpty {
			t.Error("transmitter is not empty")
		}
		write(serialData, c)
	}
	if out.String() != "hi" || interrupts != 0 {
		t.Errorf("wrote %q with %d interrupts", out.String(), interrupts)
	}
	write(serialIER, ierTransmitter)
	if interrupts != 1 || read(serialIIR)&0xf != iirTransmitter || read(serialIIR)&0xf != iirNone {
		t.Error("no transmitter interrupt, or it does not go away when told")
	}
	write(serialMCR, mcrLoopback|2|8)
	write(serialData, 'x')
	if out.String() != "hi" || read(serialMSR) != 0x90 {
		t.Errorf("loopback: wrote %q, MSR %#x", out.String(), read(serialMSR))
	}
	write(serialScratch, 0x5a)
	if read(serialScratch) != 0x5a {
		t.Error("scratch register is not kept")
	}
}

func TestBus(t *testing.T) {
	b := bus{name: "test", fill: 0xff}
	p := newProbe()
	for _, w := range []struct {
		base, size uint64
		ok         bool
	}{{0x100, 0x10, true}, {0x200, 1, true}, {0x108, 1, false}, {0xf8, 9, false}, {0x110, 0xf0, true}, {0x1ff, 2, false}} {
		if err := b.add(w.base, w.size, p); (err == nil) != w.ok {
			t.Errorf("add %#x+%#x: %v", w.base, w.size, err)
		}
	}
	for _, a := range []struct {
		addr  uint64
		n     int
		found bool
	}{{0x100, 4, true}, {0x10c, 4, true}, {0x10d, 4, false}, {0xff, 1, false}, {0x200, 1, true}, {0x200, 2, false}, {0, 1, false}, {^uint64(0), 8, false}} {
		if got := b.find(a.addr, a.n) != nil; got != a.found {
			t.Errorf("find %#x+%d: %v, want %v", a.addr, a.n, got, a.found)
		}
	}
	got := []byte{0, 0}
	b.read(0x500, got)
	b.write(0x500, got)
	if got[0] != 0xff || got[1] != 0xff || b.unclaimed.Load() != 2 {
		t.Errorf("nobody's address: % x, %d counted", got, b.unclaimed.Load())
	}
}
