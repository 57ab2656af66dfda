package vmm

import (
	"slices"
	"testing"

	"spore/vmm/api"
)

// TestVCPUStateMoves stops a guest that counts in a register, moves its vCPU's state and memory to another machine and lets
// it go on there.
func TestVCPUStateMoves(t *testing.T) {
	// mov ecx, 0x1234; out probe; again: in eax, probe; test eax, eax; jz again; mov eax, ecx; out; power off
	guest := asm([]byte{0xb9}, le32(0x1234), out32(portProbe, 1),
		in32(portProbe), []byte{0x85, 0xc0, 0x74, 0xf7}, // back over test (2), jz (2), in (1) and mov dx (4)
		[]byte{0x89, 0xc8}, outEAX(portProbe), off, halt)
	from, p := newTestMachine(t, guest, nil)
	ctx := within(t)
	if err := from.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if err := from.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	state, err := saveVCPU(from.cpus[0].kvm)
	if err != nil {
		t.Fatal(err)
	}
	if state.Regs.RCX != 0x1234 {
		t.Errorf("RCX %#x, want 0x1234", state.Regs.RCX)
	}
	to, p := newTestMachine(t, guest, nil)
	p.answer = 1
	for i, r := range from.ram.mem.Regions() {
		copy(to.ram.mem.Regions()[i].Host[:2<<20], r.Host[:2<<20]) // all that this guest uses
	}
	if err := loadVCPU(to.cpus[0].kvm, state, nil); err != nil {
		t.Fatal(err)
	}
	if exit := finish(t, to); exit.Reason != api.ExitPowerOff {
		t.Fatalf("ended with %+v", exit)
	}
	if got := p.values(); !slices.Equal(got, []uint64{0x1234}) {
		t.Errorf("guest reported %#x after the move, want 0x1234", got)
	}
}
