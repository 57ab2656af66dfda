package kvm

import (
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

func openSystem(t *testing.T) *System {
	t.Helper()
	testenv.Require(t, testenv.KVM)
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestLogSwitch turns a log on and off; while it is off KVM has none.
func TestLogSwitch(t *testing.T) {
	vm, err := openSystem(t).CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	mem, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	slot := MemSlot{Host: mem}
	if err := vm.SetMemory(slot); err != nil {
		t.Fatal(err)
	}
	for _, slots := range [][]MemSlot{nil, {slot, slot, slot}} {
		if _, err := vm.NewLogSwitch(0, slots); err == nil {
			t.Errorf("a switch of %d slots", len(slots))
		}
	}
	const at = 0x10_0000
	s, err := vm.NewLogSwitch(at, []MemSlot{slot})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.NewLogSwitch(at, []MemSlot{slot}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second table at its place: %v", err)
	}
	for _, on := range []bool{true, false, true} {
		if err := s.Set(on); err != nil {
			t.Fatal(err)
		}
		if err := vm.DirtyLog(0, make([]uint64, 1)); (err == nil) != on || err != nil && !errors.Is(err, unix.ENOENT) {
			t.Errorf("log on: %v; asked for it: %v", on, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if s, err = vm.NewLogSwitch(at, []MemSlot{slot, slot}); err != nil {
		t.Fatalf("its place again: %v", err)
	}
	s.Close()
}

// newGuest makes a VM with one page of memory that holds code, and a vCPU that enters it in real mode at 0.
func newGuest(t *testing.T, code ...byte) (*VM, *VCPU) {
	t.Helper()
	vm, err := openSystem(t).CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	copy(mem, code)
	if err := vm.SetMemory(MemSlot{Host: mem}); err != nil {
		t.Fatal(err)
	}
	if err := vm.CreateIRQChip(); err != nil {
		t.Fatal(err)
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close(); vm.Close(); unix.Munmap(mem) })
	s, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CS.Base, s.CS.Selector = 0, 0
	if err := v.SetSregs(&s); err != nil {
		t.Fatal(err)
	}
	if err := v.SetRegs(&Regs{RFLAGS: 2}); err != nil {
		t.Fatal(err)
	}
	return vm, v
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var sys *os.SyscallError
	if _, err := Open(int(f.Fd())); !errors.As(err, &sys) || sys.Syscall != "KVM_GET_API_VERSION" {
		t.Errorf("got %v, want an error of KVM_GET_API_VERSION", err)
	}
}

func TestRunDecodesPorts(t *testing.T) {
	// mov dx, 0x510; mov al, 0x5a; out dx, al; in al, dx; out dx, al; hlt
	_, v := newGuest(t, 0xba, 0x10, 0x05, 0xb0, 0x5a, 0xee, 0xec, 0xee, 0xf4)
	e, err := v.Run()
	if err != nil || e.Reason != ExitIO || !e.Write || e.Addr != 0x510 || !slices.Equal(e.Data, []byte{0x5a}) {
		t.Fatalf("out: %+v, %v", e, err)
	}
	e, err = v.Run()
	if err != nil || e.Write || len(e.Data) != 1 || e.Data[0] != 0 {
		t.Fatalf("in: %+v, %v; want one byte, zeroed", e, err)
	}
	e.Data[0] = 0x77
	e, err = v.Run()
	if err != nil || !slices.Equal(e.Data, []byte{0x77}) {
		t.Fatalf("out of what was read: %+v, %v", e, err)
	}
}

// MEM-01: the file behind guest memory becomes shorter under the guest, which then touches what is gone. The run ends with
// an error, or as an access to no memory where KVM is software, and neither with a signal nor never.
func TestMEM01TruncatedMemory(t *testing.T) {
	// mov ax, 0x1000; mov ds, ax; mov al, [0]; hlt
	vm, v := newGuest(t, 0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xa0, 0x00, 0x00, 0xf4)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 16
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	if err := vm.SetMemory(MemSlot{Slot: 1, GPA: 1 << 16, Host: mem}); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if e, err := v.Run(); !errors.Is(err, unix.EFAULT) && (err != nil || e.Reason != ExitMMIO || e.Addr != 1<<16) {
		t.Errorf("got %+v, %v; want EFAULT", e, err)
	}
}

func TestKickIsStickyAndHarmless(t *testing.T) {
	_, v := newGuest(t, 0xeb, 0xfe) // jmp to itself
	if err := v.Kick(); err != nil {
		t.Fatal(err)
	}
	v.Bind()
	for range 3 {
		if _, err := v.Run(); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("run of a kicked vCPU: %v", err)
		}
	}
	// One kick for each run, at any moment around its beginning: none may be lost.
	kick := make(chan struct{})
	var kicker sync.WaitGroup
	kicker.Go(func() {
		for range kick {
			if err := v.Kick(); err != nil {
				t.Errorf("kick: %v", err)
			}
		}
	})
	for range 500 {
		v.ClearKick()
		kick <- struct{}{}
		if _, err := v.Run(); !errors.Is(err, ErrInterrupted) {
			t.Errorf("run: %v", err)
		}
	}
	close(kick)
	kicker.Wait()
}

// TestStateRoundTrips sets what was got, for every kind of state.
func TestStateRoundTrips(t *testing.T) {
	vm, v := newGuest(t, 0xf4)
	check := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := v.Regs()
	check("get regs", err)
	r.RBX = 0x1234
	check("set regs", v.SetRegs(&r))
	if again, err := v.Regs(); err != nil || again != r {
		t.Errorf("regs %+v, want %+v (%v)", again, r, err)
	}
	f, err := v.FPU()
	check("get FPU", err)
	check("set FPU", v.SetFPU(&f))
	x, err := v.XSave()
	check("get XSAVE", err)
	check("set XSAVE", v.SetXSave(x))
	xcrs, err := v.XCRs()
	check("get XCRS", err)
	check("set XCRS", v.SetXCRs(&xcrs))
	d, err := v.DebugRegs()
	check("get debug registers", err)
	check("set debug registers", v.SetDebugRegs(&d))
	l, err := v.LAPIC()
	check("get LAPIC", err)
	check("set LAPIC", v.SetLAPIC(l))
	mp, err := v.MPState()
	check("get MP state", err)
	check("set MP state", v.SetMPState(mp))
	e, err := v.Events()
	check("get events", err)
	check("set events", v.SetEvents(&e))
	msrs, err := v.MSRs([]uint32{0x174, 0xc0000080}) // SYSENTER_CS, EFER
	check("get MSRs", err)
	check("set MSRs", v.SetMSRs(msrs))
	for id := range uint32(3) {
		chip, err := vm.IRQChip(id)
		check("get irqchip", err)
		check("set irqchip", vm.SetIRQChip(&chip))
	}
	c, err := vm.Clock()
	check("get clock", err)
	check("set clock", vm.SetClock(&Clock{Nanos: c.Nanos}))
	if _, err := v.MSRs(make([]uint32, maxMSRs+1)); err == nil {
		t.Error("too many MSRs: no error")
	}
	if err := v.SetCPUID(make([]CPUIDEntry, maxCPUID+1)); err == nil {
		t.Error("too many CPUID entries: no error")
	}
}

func TestDecodeRefusesDataOutsideThePage(t *testing.T) {
	for _, test := range []struct {
		name   string
		size   byte
		count  uint32
		offset uint64
	}{
		{"no size", 0, 1, 4096}, {"size 8", 8, 1, 4096}, {"count", 4, 1 << 30, 4096},
		{"offset", 1, 1, 1 << 63}, {"end", 4, 2, 8190},
	} {
		v := &VCPU{page: make([]byte, 8192)}
		v.page[offExitReason] = byte(ExitIO)
		v.page[offUnion+1] = test.size
		for i := range 4 {
			v.page[offUnion+4+i] = byte(test.count >> (8 * i))
		}
		for i := range 8 {
			v.page[offUnion+8+i] = byte(test.offset >> (8 * i))
		}
		if _, err := v.decode(); !errors.Is(err, errRunPage) {
			t.Errorf("%s: %v, want errRunPage", test.name, err)
		}
	}
}
