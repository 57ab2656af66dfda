package vmm

import (
	"os"
	"testing"

	"spore/vmm/api"
)

// poll is mov ebx, addr; again: test dword [rbx], mask; jz again.
func poll(addr, mask uint32) []byte {
	return asm([]byte{0xbb}, le32(addr), []byte{0xf7, 0x03}, le32(mask), []byte{0x74, 0xf8})
}

const (
	rngDevice = 0xd0000000 // the first and only device
	rngBuffer = 0x6000
	rngDesc   = 0x10000
	rngAvail  = 0x11000
	rngUsed   = 0x12000
)

// rngDriver negotiates with the entropy device and asks it for 16 bytes, as a driver does (virtio 1.2 §3.1, §4.2.3).
func rngDriver() []byte {
	reg := func(off, v uint32) []byte { return store32(rngDevice+off, v) }
	return asm(
		reg(0x70, 0), reg(0x70, 1), reg(0x70, 3), // reset, ACKNOWLEDGE, DRIVER
		reg(0x24, 0), reg(0x20, 0), reg(0x24, 1), reg(0x20, 1), // VERSION_1 only
		reg(0x70, 11),              // FEATURES_OK
		reg(0x30, 0), reg(0x38, 8), // queue 0, 8 descriptors
		reg(0x80, rngDesc), reg(0x84, 0), reg(0x90, rngAvail), reg(0x94, 0), reg(0xa0, rngUsed), reg(0xa4, 0),
		reg(0x44, 1), reg(0x70, 15), // ready, DRIVER_OK
		store32(rngDesc, rngBuffer), store32(rngDesc+4, 0), store32(rngDesc+8, 16), store32(rngDesc+12, 2), // device-writable
		store32(rngAvail+4, 0), store32(rngAvail, 1<<16), // idx 1
		reg(kickOffset, 0),
	)
}

// TestVirtioRequestFromTheGuest goes the whole way: registers, ioeventfd, queue, device, used ring, irqfd, IOAPIC, APIC.
func TestVirtioRequestFromTheGuest(t *testing.T) {
	const (
		ioapicIndex, ioapicData = 0xfec00000, 0xfec00010
		lapicSVR                = 0xfee000f0
		lapicIRR                = 0xfee00220 // vectors 0x40 to 0x5f
		vector                  = 0x40
		pin                     = uint32(firstGSI)
	)
	guest := asm(
		store32(lapicSVR, 0x1ff),                                 // enabled
		store32(ioapicIndex, 0x11+2*pin), store32(ioapicData, 0), // to APIC 0
		store32(ioapicIndex, 0x10+2*pin), store32(ioapicData, vector), // fixed, edge, unmasked
		rngDriver(),
		poll(rngUsed, 1<<16),                      // used.idx
		poll(lapicIRR, 1),                         // the interrupt is pending
		load32(rngDevice+0x60), outEAX(portProbe), // InterruptStatus
		load32(rngUsed+8), outEAX(portProbe), // length written
		load32(rngBuffer), outEAX(portProbe),
		load32(rngBuffer+4), outEAX(portProbe),
		off, halt)
	m, p := newTestMachine(t, guest, withEntropy(t))
	if exit := finish(t, m); exit.Reason != api.ExitPowerOff {
		t.Fatalf("ended with %+v", exit)
	}
	got := p.values()
	if len(got) != 4 || got[0] != 1 || got[1] != 16 {
		t.Fatalf("guest reports %#x, want interrupt status 1 and 16 bytes", got)
	}
	if got[2] == 0 && got[3] == 0 {
		t.Error("the random bytes are all zero")
	}
	stats := m.Stats()["rng"]
	if stats["transport_kicks"] != 0 {
		t.Errorf("%d kicks came as exits, want none: the event descriptor takes them", stats["transport_kicks"])
	}
}

// TestTR09ResetUnderLoad resets the device again and again with a request in flight.
func TestTR09ResetUnderLoad(t *testing.T) {
	body := rngDriver()
	head := asm([]byte{0x41, 0xbc}, le32(200)) // mov r12d, 200
	back := -int32(len(body) + 5 + 4)
	loop := asm(body, []byte{0x41, 0xff, 0xcc, 0x0f, 0x85}, le32(uint32(back))) // dec r12d; jnz back
	m, _ := newTestMachine(t, asm(head, loop, off, halt), withEntropy(t))
	if exit := finish(t, m); exit.Reason != api.ExitPowerOff {
		t.Fatalf("ended with %+v", exit)
	}
	stats := m.Stats()["rng"]
	if stats["transport_resets"] != 200 || stats["transport_failures"] != 0 {
		t.Errorf("counters %v, want 200 resets and no failure", stats)
	}
}

// withEntropy gives the machine an entropy device.
func withEntropy(t *testing.T) func(*api.Config, *Env) {
	return func(cfg *api.Config, env *Env) {
		f, err := os.Open("/dev/urandom")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cfg.Entropy = api.File(len(env.Files))
		env.Files = append(env.Files, f)
	}
}
