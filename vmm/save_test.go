package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio/block"
	"spore/virtio/block/blocktest"
	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// memFile is an empty file in memory.
func memFile(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

// pagemap is that of this process, which is the VMM here.
func pagemap(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

type saveFiles struct{ State, Memory *os.File }

// save takes a snapshot of m. Memory changed since another snapshot goes on top of a copy of that one's.
func save(t testing.TB, m *Machine, base *os.File, live bool) (to saveFiles, saved api.Saved) {
	t.Helper()
	to = saveFiles{State: memFile(t, "state"), Memory: memFile(t, "memory")}
	running := m.state == Running
	saved, err := m.Save(t.Context(), to.State, to.Memory, pagemap(t), live, false)
	if err != nil {
		t.Fatal(err)
	}
	if running {
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.Stopped() == 0 {
			t.Error("the machine stood still for no time")
		}
	}
	if err := to.Memory.Truncate(m.cfg.Memory); err != nil {
		t.Fatal(err)
	}
	if saved.Changes {
		whole := memFile(t, "memory")
		copyData(t, whole, base)
		copyData(t, whole, to.Memory)
		to.Memory = whole
	}
	return to, saved
}

// copyData copies what is no hole.
func copyData(t testing.TB, to, from *os.File) {
	t.Helper()
	size, err := from.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); ; {
		start, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if off, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, off-start)
		if _, err := from.ReadAt(b, start); err != nil {
			t.Fatal(err)
		}
		if _, err := to.WriteAt(b, start); err != nil {
			t.Fatal(err)
		}
	}
}

// wake makes a machine of a snapshot.
func wake(t testing.TB, from saveFiles, change func(*api.Config, *Env)) (*Machine, *probe) {
	t.Helper()
	return newTestMachine(t, nil, func(cfg *api.Config, env *Env) {
		dup := func(f *os.File) *os.File {
			fd, err := unix.Dup(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), f.Name())
		}
		cfg.Boot.Kernel = api.NoFile
		cfg.Restore = &api.Restore{State: api.File(len(env.Files)), Memory: api.File(len(env.Files) + 1)}
		env.Files = append(env.Files, dup(from.State), dup(from.Memory))
		if change != nil {
			change(cfg, env)
		}
	})
}

// counting tells the probe ECX, waits for an answer other than 0, adds it to ECX and to the word at 0x300000, and
// begins again.
func counting() code {
	loop := asm([]byte{0x89, 0xc8}, outEAX(portProbe), // mov eax, ecx; out
		in32(portProbe), []byte{0x85, 0xc0, 0x74, 0xf7}, // back over test (2), jz (2), in (1) and mov dx (4)
		[]byte{0x01, 0xc1, 0xbb}, le32(0x300000), []byte{0x01, 0x03}) // add ecx, eax; mov ebx, …; add [rbx], eax
	return asm([]byte{0xb9}, le32(1000), loop, []byte{0xeb, byte(-len(loop) - 2)})
}

// reply lets a counting guest go on once.
func (p *probe) reply(v uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = v
}

// TestSnapshotGoesOn moves a guest through three machines; each goes on where the one before stood, and the ones before
// are not changed by it.
func TestSnapshotGoesOn(t *testing.T) {
	m, p := newTestMachine(t, counting(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	first, saved := save(t, m, nil, false)
	if saved.Changes {
		t.Errorf("saved %+v of a running machine that was booted", saved)
	}
	if err := m.Pause(within(t)); err != nil {
		t.Fatalf("the machine does not run on after it was saved: %v", err)
	}
	second, p := wake(t, first, nil)
	p.reply(7)
	if err := second.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for len(p.values()) < 3 { // 1000 was told before; 1007 and more come
		await(t, p)
	}
	p.reply(0)
	third, saved := save(t, second, first.Memory, false)
	told := p.values()
	if told[0] != 1007 || told[1] != 1014 {
		t.Errorf("the second machine told %v, want it to go on with 1007", told)
	}
	if !saved.Changes || saved.During == 0 || saved.During > 64*guestmem.PageSize {
		t.Errorf("saved %+v of a machine that changed a page or two", saved)
	}
	last, p := wake(t, third, nil)
	p.reply(100)
	if err := last.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for len(p.values()) < 2 { // the first may be of an answer that the second machine got
		await(t, p)
	}
	if got := p.values(); got[0] < 1014 || got[1] != got[0]+100 {
		t.Errorf("the third machine told %v, want it to go on from the second's and add 100", got[:2])
	}
	// The word in memory moved with the registers.
	if err := last.Pause(within(t)); err != nil {
		t.Fatal(err)
	}
	word, err := last.ram.mem.LoadUint32(0x300000)
	if err != nil || word < 107 {
		t.Errorf("the word in memory is %d, %v", word, err)
	}
	again, p := wake(t, first, nil)
	p.reply(1)
	if err := again.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if got := p.values()[0]; got != 1001 {
		t.Errorf("the first snapshot woke again with %d, want 1001", got)
	}
}

// TestLiveSnapshotIsOfOneMoment saves a guest that runs all the time. Its registers and its memory, which it changes
// together, must be of the same moment.
func TestLiveSnapshotIsOfOneMoment(t *testing.T) {
	m, p := newTestMachine(t, counting(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	from, _ := save(t, m, nil, false)
	m, p = wake(t, from, nil)
	p.reply(1)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		await(t, p)
		to, saved := save(t, m, from.Memory, true)
		if saved.Before == 0 {
			t.Errorf("nothing was copied while the guest ran: %+v", saved)
		}
		copied, q := wake(t, to, nil)
		word, err := copied.ram.mem.LoadUint32(0x300000)
		if err != nil {
			t.Fatal(err)
		}
		q.reply(1)
		if err := copied.Resume(within(t)); err != nil {
			t.Fatal(err)
		}
		await(t, q)
		// It was saved before or after it told ECX, and between the two additions at most.
		if got := q.values()[0]; got < 1000+uint64(word) || got > 1000+uint64(word)+1 {
			t.Errorf("woke with %d counted and %d in memory", got-1000, word)
		}
	}
}

// TestHotPages notes what a woken guest writes; the next one that wakes has it copied, and goes on the same.
func TestHotPages(t *testing.T) {
	m, p := newTestMachine(t, counting(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	from, _ := save(t, m, nil, false)
	if err := m.Hot(memFile(t, "hot"), pagemap(t)); !errors.Is(err, ErrState) {
		t.Errorf("hot pages of a machine that booted: %v, want ErrState", err)
	}
	m, p = wake(t, from, nil)
	p.reply(1)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	for len(p.values()) < 2 {
		await(t, p)
	}
	hot := memFile(t, "hot")
	if err := m.Hot(hot, pagemap(t)); err != nil {
		t.Fatal(err)
	}
	pages := make([]byte, m.cfg.Memory/guestmem.PageSize/8)
	if n, err := hot.ReadAt(pages, 0); n != len(pages) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if word := pages[0x300000/guestmem.PageSize/8]; word&1 == 0 {
		t.Error("the page that the guest adds to is not hot")
	}
	all := memFile(t, "all") // a list that is longer than what this guest writes
	if _, err := all.WriteAt(bytes.Repeat([]byte{0xff}, len(pages)), 0); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]*os.File{"hot": hot, "all": all, "cut off": memFile(t, "cut off")} {
		m, p := wake(t, from, func(cfg *api.Config, env *Env) {
			cfg.Restore.Hot = api.File(len(env.Files))
			fd, err := unix.Dup(int(file.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			env.Files = append(env.Files, os.NewFile(uintptr(fd), name))
		})
		p.reply(5)
		if err := m.Resume(within(t)); err != nil {
			t.Fatal(err)
		}
		await(t, p)
		if got := p.values()[0]; got != 1005 {
			t.Errorf("%s: woke with %d, want 1005", name, got)
		}
		for _, live := range []bool{true, false} { // what was copied and is the same is not in a snapshot
			if _, saved := save(t, m, from.Memory, live); saved.Before+saved.During > 64*guestmem.PageSize {
				t.Errorf("%s: saved %+v of a guest that changed a page or two", name, saved)
			}
		}
	}
}

// TestSNAP08 wakes with other files than were saved: what the configuration says holds, or the machine is refused.
func TestSNAP08(t *testing.T) {
	m, p := newTestMachine(t, counting(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	from, _ := save(t, m, nil, false)
	state, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", from.State.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Decode(state)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*snapshot.State)
		config func(*api.Config)
		memory int64 // more than the configuration says
		want   error
	}{
		{name: "more memory", config: func(c *api.Config) { c.Memory += 2 << 20 }, want: ErrConfig},
		{name: "more vCPUs", config: func(c *api.Config) { c.VCPUs = 2 }, want: ErrConfig},
		{name: "another device", config: func(c *api.Config) { c.Balloon = true }, want: ErrConfig},
		{name: "memory cut off", memory: -guestmem.PageSize, want: ErrConfig},
		{name: "memory too long", memory: guestmem.PageSize, want: ErrConfig},
		{name: "another processor", change: func(s *snapshot.State) { s.VCPUs[0].CPUID[3].EBX ^= 1 }, want: ErrHost},
		{name: "another clock", change: func(s *snapshot.State) { s.TSCKHz += s.TSCKHz / 100 }, want: ErrHost},
		{name: "an MSR of the host's", change: func(s *snapshot.State) { s.VCPUs[0].MSRs[0].Index = 0x8b }, want: snapshot.ErrFormat},
		{name: "no state", change: func(s *snapshot.State) {
			*s = snapshot.State{Memory: snapshot.BlockSize, Blocks: []uint64{0}, VCPUs: s.VCPUs, Chips: s.Chips}
		}, want: ErrConfig},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad, err := snapshot.Decode(state)
			if err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(bad)
			}
			b, err := snapshot.Encode(bad)
			if err != nil {
				t.Fatal(err)
			}
			files := saveFiles{State: memFile(t, "state"), Memory: memFile(t, "memory")}
			files.State.Write(b)
			cfg := m.cfg
			cfg.Boot.Kernel = api.NoFile
			cfg.Restore = &api.Restore{State: 1, Memory: 2}
			if test.config != nil {
				test.config(&cfg)
			}
			files.Memory.Truncate(cfg.Memory + test.memory)
			kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer kvm.Close()
			woken, err := New(cfg, Env{Files: []*os.File{kvm, files.State, files.Memory}})
			if err == nil {
				woken.Close()
			}
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	if !bytes.Equal(mustEncode(t, s), state) {
		t.Error("what was decoded is encoded otherwise")
	}
}

func mustEncode(t *testing.T, s *snapshot.State) []byte {
	t.Helper()
	b, err := snapshot.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPageSetRuns(t *testing.T) {
	s := make(pageSet, 3)
	for _, p := range []int{0, 1, 2, 63, 64, 65, 191} {
		s.add(p)
	}
	var got [][2]int
	for first, n := s.run(0, 2); n > 0; first, n = s.run(first+n, 2) {
		got = append(got, [2]int{first, n})
	}
	if want := [][2]int{{0, 2}, {2, 1}, {63, 2}, {65, 1}, {191, 1}}; !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}
}

// TestShell wakes a snapshot in an empty machine, once, and refuses another shape.
func TestShell(t *testing.T) {
	m, p := newTestMachine(t, counting(), nil)
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	from, _ := save(t, m, nil, false)
	empty := func(change func(*api.Config)) *Machine {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer kvm.Close()
		cfg := m.cfg
		cfg.Wait = true
		if change != nil {
			change(&cfg)
		}
		shell, err := NewEmpty(cfg, Env{Files: []*os.File{kvm}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := shell.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		if err := shell.Rehearse(); err != nil {
			t.Fatal(err)
		}
		return shell
	}
	cfg := m.cfg
	cfg.Boot.Kernel = api.NoFile
	cfg.Restore = &api.Restore{State: 1, Memory: 2}
	fill := func(shell *Machine) error {
		var files []*os.File
		for _, f := range []*os.File{from.State, from.Memory} {
			fd, err := unix.Dup(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, os.NewFile(uintptr(fd), f.Name()))
		}
		return shell.Fill(cfg, Env{Files: append([]*os.File{nil}, files...)})
	}
	for name, change := range map[string]func(*api.Config){
		"more memory": func(c *api.Config) { c.Memory += 2 << 20 }, "more vCPUs": func(c *api.Config) { c.VCPUs++ },
		"another device": func(c *api.Config) { c.Balloon = true },
	} {
		if err := fill(empty(change)); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
	shell := empty(nil)
	if err := shell.Resume(within(t)); !errors.Is(err, ErrState) {
		t.Errorf("an empty machine was resumed: %v", err)
	}
	if err := fill(shell); err != nil {
		t.Fatal(err)
	}
	if err := fill(shell); !errors.Is(err, ErrState) {
		t.Errorf("filled twice: %v", err)
	}
	p = newProbe()
	if err := shell.ports.add(portProbe, 4, p); err != nil {
		t.Fatal(err)
	}
	p.reply(3)
	if err := shell.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if got := p.values()[0]; got != 1003 {
		t.Errorf("the shell woke with %d, want 1003", got)
	}
}

// TestDiskWritesAreBounded tells more stretches than a reply holds as fewer and longer ones.
func TestDiskWritesAreBounded(t *testing.T) {
	const chunk = 64 << 10
	d := &blocktest.Disk{Data: make([]byte, 1)}
	log := block.NewWriteLog(wide{d, 4 * api.MaxExtents * chunk})
	m := &Machine{written: map[string]*block.WriteLog{"x": log}}
	for i := range int64(2 * api.MaxExtents) { // every second one
		log.Discard(2*i*chunk, 1)
	}
	got := m.takeDiskWrites()["x"]
	if len(got) > api.MaxExtents || len(got) == 0 {
		t.Fatalf("%d extents", len(got))
	}
	if first, last := got[0], got[len(got)-1]; first.Offset != 0 || last.Offset+last.Length != (4*api.MaxExtents-1)*chunk {
		t.Errorf("from %v to %v", first, last)
	}
	for i := 1; i < len(got); i++ {
		if got[i].Offset < got[i-1].Offset+got[i-1].Length {
			t.Fatalf("%v after %v", got[i], got[i-1])
		}
	}
	if m.Track(); len(m.takeDiskWrites()["x"]) != 0 {
		t.Error("not forgotten")
	}
}

// wide says that a disk is larger than it is.
type wide struct {
	block.Backend
	size int64
}

func (w wide) Size() int64                { return w.size }
func (w wide) Discard(int64, int64) error { return nil }
