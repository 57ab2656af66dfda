package vmm

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"spore/guestmem"
	"spore/kvm"
	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// The staircase guest writes 1 to a word of each of its pages, in order, then 2 to each, and so on, as fast as it can. At any
// moment the words are a staircase of one step, which is where its registers say it is: a page that a snapshot took too
// early, or missed, makes another.
const (
	stairsAt = 0x400000
	stairs   = 2048 // pages
)

func staircase() code {
	inner := asm([]byte{0x89, 0x0b, 0x81, 0xc3}, le32(guestmem.PageSize), // mov [rbx], ecx; add ebx, 4096
		[]byte{0x81, 0xfb}, le32(stairsAt+stairs*guestmem.PageSize)) // cmp ebx, end
	outer := asm([]byte{0xff, 0xc1, 0xbb}, le32(stairsAt), // inc ecx; mov ebx, …
		inner, []byte{0x72, byte(-len(inner) - 2)}) // jb to the mov
	return asm([]byte{0x31, 0xc9, 0xbb}, le32(stairsAt), out8(portProbe, 1), outer, []byte{0xeb, byte(-len(outer) - 2)})
}

// TestLiveSnapshotLosesNoWrite saves the staircase while it runs, again and again, each snapshot being the changes since the
// first: none may have a page of another moment than the registers.
func TestLiveSnapshotLosesNoWrite(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	m, p := newTestMachine(t, staircase(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	var from saveFiles
	for range max(1, rounds/4) { // of a machine that was booted, and runs
		from, _ = save(t, m, nil, true)
		checkStairs(t, from)
	}
	m, _ = wake(t, from, nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	var last saveFiles
	for range rounds {
		last, _ = save(t, m, from.Memory, true)
		checkStairs(t, last)
	}
	// The same, from a machine that went on from such a snapshot.
	m, _ = wake(t, last, nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for range rounds {
		next, _ := save(t, m, last.Memory, true)
		checkStairs(t, next)
	}
}

// TestNoSnapshotOfADeadGuest saves a guest whose triple fault the machine has not noted yet. KVM has reset the vCPU then
// (shutdown_interception of Linux's svm.c): a snapshot of that would wake as nothing.
func TestNoSnapshotOfADeadGuest(t *testing.T) {
	m, _ := newTestMachine(t, []byte{0x0f, 0x0b}, nil) // ud2, and no IDT
	begun, asked := make(chan struct{}), make(chan struct{})
	go m.once.Do(func() { // the first end is on its way
		close(begun)
		<-asked
		m.exit = Exit{api.ExitTripleFault, t.Name()}
		m.ending.Store(true)
		m.gate.set(wantStop)
		close(m.ended)
	})
	<-begun
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await := func(what string, is func() bool) {
		for end := time.Now().Add(deadline); !is(); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	await("the triple fault", func() bool { return m.cpus[0].exits[kvm.ExitShutdown].Load() > 0 })
	to := saveFiles{State: memFile(t, "state"), Memory: memFile(t, "memory")}
	saved := make(chan error, 1)
	go func() {
		_, err := m.Save(within(t), to.State, to.Memory, pagemap(t), false, false)
		saved <- err
	}()
	await("the pause", func() bool { return m.gate.want.Load() == wantPause })
	close(asked)
	if err := <-saved; !errors.Is(err, ErrState) {
		t.Errorf("saved a dead guest: %v, want ErrState", err)
	}
}

func decode(t *testing.T, s saveFiles) *snapshot.State {
	t.Helper()
	info, err := s.State.Stat()
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, info.Size())
	if _, err := s.State.ReadAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	state, err := snapshot.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// checkStairs compares the words in a snapshot's memory with the registers in its state.
func checkStairs(t *testing.T, s saveFiles) {
	t.Helper()
	regs := decode(t, s).VCPUs[0].Regs
	words := make([]uint32, stairs)
	for i := range words {
		var b [4]byte
		if _, err := s.Memory.ReadAt(b[:], stairsAt+int64(i)*guestmem.PageSize); err != nil {
			t.Fatal(err)
		}
		words[i] = binary.LittleEndian.Uint32(b[:])
	}
	step := 0 // how many words have been written in this turn
	for step < stairs && words[step] == words[0] {
		step++
	}
	for i := step; i < stairs; i++ {
		if words[i] != words[0]-1 {
			t.Fatalf("page %d has %d after a step from %d at page %d", i, words[i], words[0], step)
		}
	}
	turn, at := uint32(regs.RCX), int(regs.RBX-stairsAt)/guestmem.PageSize
	// It stands between two instructions: the word at its place may be written, and the turn counted before its first word is.
	switch {
	case words[0] == 0 && turn == 0: // not begun
	case words[0] == turn && (step == at || step == at+1):
	case step == stairs && words[0] == turn-1 && (at == 0 || at == stairs): // counted, none written
	default:
		t.Fatalf("registers: turn %d, page %d (rip %#x); memory: turn %d, page %d", turn, at, regs.RIP, words[0], step)
	}
}
