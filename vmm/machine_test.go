package vmm

import (
	"errors"
	"os"
	"slices"
	"testing"

	"spore/vmm/api"
)

func TestMachineEndsWithTheRightReason(t *testing.T) {
	for _, test := range []struct {
		name  string
		guest code
		want  api.ExitReason
	}{
		{"power off", asm(off, halt), api.ExitPowerOff},
		{"reset register", asm(out8(portReset, 1), halt), api.ExitReset},
		{"keyboard reset", asm(out8(portKeyboard, 0xfe), halt), api.ExitReset},
		{"panic", asm(out8(portPanic, panicPanicked), halt), api.ExitPanic},
		{"triple fault", asm([]byte{0x0f, 0x0b}), api.ExitTripleFault}, // ud2 with an empty IDT
		{"other sleep type ignored", asm(out8(portSleep, 0x20), out8(portReset, 1), halt), api.ExitReset},
		{"crash kernel to come ignored", asm(out8(portPanic, panicCrashLoaded), off, halt), api.ExitPowerOff},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, _ := newTestMachine(t, test.guest, nil)
			if got := finish(t, m); got.Reason != test.want {
				t.Errorf("ended with %+v, want %s", got, test.want)
			}
		})
	}
}

// TestTR06 reads where nobody answers, after the run page has held other bytes: the answer is constant.
func TestTR06UnclaimedReadsLeakNothing(t *testing.T) {
	const nobody = 0xd0900000
	guest := asm(
		out32(portProbe, 0xaaaaaaaa), // fills the PIO data page
		in32(0x777), outEAX(portProbe),
		store32(gpaProbe, 0xbbbbbbbb), // fills the MMIO data
		load32(nobody), outEAX(portProbe),
		in32(portReset), outEAX(portProbe), // claimed by one byte, asked for four: nobody's
		off, halt)
	m, p := newTestMachine(t, guest, nil)
	finish(t, m)
	want := []uint64{0xaaaaaaaa, 0xffffffff, 0xbbbbbbbb, 0, 0xffffffff}
	if got := p.values(); !slices.Equal(got, want) {
		t.Errorf("guest saw %#x, want %#x", got, want)
	}
	if n := m.Stats()["bus"]["memory_unclaimed"]; n != 1 {
		t.Errorf("%d unclaimed memory accesses counted, want 1", n)
	}
}

func TestRegisterReadReachesTheGuest(t *testing.T) {
	m, p := newTestMachine(t, asm(in32(portProbe), outEAX(portProbe), load32(gpaProbe), outEAX(portProbe), off, halt), nil)
	p.answer = 0x12345678
	finish(t, m)
	if got, want := p.values(), []uint64{0x12345678, 0x12345678}; !slices.Equal(got, want) {
		t.Errorf("guest saw %#x, want %#x", got, want)
	}
}

// TestStringOutput sends three bytes by rep outsb; each is one access to the port.
func TestStringOutput(t *testing.T) {
	guest := asm(
		store32(0x5000, 0x00636261),
		[]byte{0xbe}, le32(0x5000), // mov esi, 0x5000
		[]byte{0xb9}, le32(3), // mov ecx, 3
		[]byte{0x66, 0xba}, le16(portProbe), // mov dx, portProbe
		[]byte{0xfc, 0xf3, 0x6e}, // cld; rep outsb
		off, halt)
	m, p := newTestMachine(t, guest, nil)
	finish(t, m)
	if got, want := p.values(), []uint64{'a', 'b', 'c'}; !slices.Equal(got, want) {
		t.Errorf("port got %#x, want %#x", got, want)
	}
}

func TestPauseResumeStop(t *testing.T) {
	// The guest writes to the probe for ever.
	guest := asm(out32(portProbe, 1), []byte{0xeb, 0xf4}) // jmp back to the start: 10 bytes and its own 2
	m, p := newTestMachine(t, guest, nil)
	ctx := within(t)
	if err := m.Pause(ctx); !errors.Is(err, ErrState) {
		t.Errorf("pause of a paused machine: %v, want ErrState", err)
	}
	for range 20 {
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		await(t, p)
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		before := len(p.values())
		if after := len(p.values()); before != after {
			t.Fatalf("the guest ran while paused: %d writes, then %d", before, after)
		}
		for len(p.wake) > 0 {
			<-p.wake
		}
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	m.Stop("test")
	exit, err := m.Wait(ctx)
	if err != nil || exit.Reason != api.ExitStopped {
		t.Errorf("ended with %+v, %v", exit, err)
	}
	if err := m.Resume(ctx); !errors.Is(err, ErrState) {
		t.Errorf("resume of a stopped machine: %v, want ErrState", err)
	}
}

// TestSpinningGuestCanBeStopped never leaves the guest by itself.
func TestSpinningGuestCanBeStopped(t *testing.T) {
	m, p := newTestMachine(t, asm(out32(portProbe, 1), spin), nil)
	ctx := within(t)
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	m.Stop("test")
	if exit, err := m.Wait(ctx); err != nil || exit.Reason != api.ExitStopped {
		t.Errorf("ended with %+v, %v", exit, err)
	}
}

// TestSeveralVCPUs starts the other vCPUs by INIT and SIPI; each reports from real mode.
func TestSeveralVCPUs(t *testing.T) {
	const (
		icr       = 0xfee00300
		sivr      = 0xfee000f0
		allBut    = 3 << 18 // destination: all excluding self
		assert    = 1 << 14
		initIPI   = 5 << 8
		startIPI  = 6 << 8
		startPage = 8
	)
	// mov dx, portProbe; mov al, 7; out dx, al; hlt; jmp: in 16-bit code
	trampoline := []byte{0xba, portProbe & 0xff, portProbe >> 8, 0xb0, 7, 0xee, 0xf4, 0xeb, 0xfd, 0, 0, 0}
	var place []byte
	for i := 0; i < len(trampoline); i += 4 {
		place = append(place, store32(startPage<<12+uint32(i), uint32(trampoline[i])|uint32(trampoline[i+1])<<8|
			uint32(trampoline[i+2])<<16|uint32(trampoline[i+3])<<24)...)
	}
	guest := asm(place, store32(sivr, 0x1ff), store32(icr, allBut|assert|initIPI), store32(icr, allBut|assert|startIPI|startPage), spin)
	const n = 4
	m, p := newTestMachine(t, guest, func(cfg *api.Config, _ *Env) { cfg.VCPUs = n })
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for range n - 1 {
		await(t, p)
	}
	if err := m.Pause(within(t)); err != nil {
		t.Fatal(err)
	}
	if got, want := p.values(), []uint64{7, 7, 7}; !slices.Equal(got, want) {
		t.Errorf("vCPUs reported %v, want %v", got, want)
	}
}

func TestNewRefusesBadConfigs(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*api.Config)
	}{
		{"version", func(c *api.Config) { c.Version = 99 }},
		{"no vCPU", func(c *api.Config) { c.VCPUs = 0 }},
		{"too many vCPUs", func(c *api.Config) { c.VCPUs = api.MaxVCPUs + 1 }},
		{"odd memory", func(c *api.Config) { c.Memory = api.MinMemory + 4096 }},
		{"little memory", func(c *api.Config) { c.Memory = 2 << 20 }},
		{"missing kernel", func(c *api.Config) { c.Boot.Kernel = 7 }},
		{"no kernel", func(c *api.Config) { c.Boot.Kernel = api.NoFile }},
		{"missing disk file", func(c *api.Config) { c.Disks = []api.Disk{{File: 5}} }},
		{"long command line", func(c *api.Config) { c.Boot.Cmdline = string(make([]byte, 4096)) }},
		{"no identifier", func(c *api.Config) { c.Boot.Late = "VIRTIO" }},
		{"empty pmem", func(c *api.Config) { c.Pmem = []api.Pmem{{File: 1}} }},
		{"too many disks", func(c *api.Config) { c.Disks = make([]api.Disk, api.MaxDisks+1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := Env{Files: []*os.File{os.Stdin, os.Stdin}}
			cfg := api.Config{Version: api.Version, VCPUs: 1, Memory: api.MinMemory, Control: api.NoFile, Log: api.NoFile, Entropy: api.NoFile,
				Boot: api.Boot{Kernel: 1, Initrd: api.NoFile}, Console: api.Console{Output: api.NoFile, Input: api.NoFile}}
			if err := check(&cfg, env); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			test.change(&cfg)
			if err := check(&cfg, env); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v, want ErrConfig", err)
			}
		})
	}
}
