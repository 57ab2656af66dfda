package vmm

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"spore/internal/testenv"
	"spore/vmm/api"
)

// deadline bounds every wait of these tests; it is reached only when something is broken.
const deadline = 2 * time.Minute

// code is a bare-metal guest: x86-64 machine code in ring 0, entered at 1 MiB with the first 4 GiB mapped.
type code []byte

func asm(parts ...[]byte) code {
	var c code
	for _, p := range parts {
		c = append(c, p...)
	}
	return c
}

func le16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

// out8 is mov dx, port; mov al, v; out dx, al.
func out8(port uint16, v byte) []byte {
	return asm([]byte{0x66, 0xba}, le16(port), []byte{0xb0, v, 0xee})
}

// out32 is mov dx, port; mov eax, v; out dx, eax.
func out32(port uint16, v uint32) []byte {
	return asm([]byte{0x66, 0xba}, le16(port), []byte{0xb8}, le32(v), []byte{0xef})
}

// outEAX is mov dx, port; out dx, eax.
func outEAX(port uint16) []byte { return asm([]byte{0x66, 0xba}, le16(port), []byte{0xef}) }

// in32 is mov dx, port; in eax, dx.
func in32(port uint16) []byte { return asm([]byte{0x66, 0xba}, le16(port), []byte{0xed}) }

// load32 is mov ebx, addr; mov eax, [rbx].
func load32(addr uint32) []byte { return asm([]byte{0xbb}, le32(addr), []byte{0x8b, 0x03}) }

// store32 is mov ebx, addr; mov dword [rbx], v.
func store32(addr, v uint32) []byte {
	return asm([]byte{0xbb}, le32(addr), []byte{0xc7, 0x03}, le32(v))
}

var (
	halt = []byte{0xf4, 0xeb, 0xfd} // hlt; jmp back to it
	spin = []byte{0xeb, 0xfe}       // jmp to itself
	off  = out8(portSleep, 0x34)
)

// probe is a register window that records what the guest writes and answers reads from a list.
type probe struct {
	mu     sync.Mutex
	wrote  []uint64
	answer uint32
	wake   chan struct{} // gets a value for every write, while there is room
}

func newProbe() *probe { return &probe{wake: make(chan struct{}, 1024)} }

func (p *probe) Read(_ uint64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	copy(b, le32(p.answer))
}

func (p *probe) Write(_ uint64, b []byte) {
	var v [8]byte
	copy(v[:], b)
	p.mu.Lock()
	p.wrote = append(p.wrote, binary.LittleEndian.Uint64(v[:]))
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *probe) values() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]uint64(nil), p.wrote...)
}

const (
	portProbe = 0x510
	gpaProbe  = 0xd0800000
)

// newTestMachine builds a machine for a bare-metal guest, with a probe at portProbe and gpaProbe.
func newTestMachine(t testing.TB, c code, change func(*api.Config, *Env)) (*Machine, *probe) {
	t.Helper()
	testenv.Require(t, testenv.KVM)
	open := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	image := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(image, c, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := api.Config{
		Version: api.Version, ID: t.Name(), VCPUs: 1, Memory: api.MinMemory, Test: true,
		Control: api.NoFile, Log: api.NoFile, Entropy: api.NoFile,
		Boot:    api.Boot{Kernel: 1, Initrd: api.NoFile},
		Console: api.Console{Output: api.NoFile, Input: api.NoFile},
	}
	env := Env{Files: []*os.File{open("/dev/kvm", os.O_RDWR), open(image, os.O_RDONLY)}}
	if change != nil {
		change(&cfg, &env)
	}
	m, err := New(cfg, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	p := newProbe()
	if err := m.ports.add(portProbe, 4, p); err != nil {
		t.Fatal(err)
	}
	if err := m.mmio.add(gpaProbe, 8, p); err != nil {
		t.Fatal(err)
	}
	return m, p
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// finish runs the machine to its end.
func finish(t *testing.T, m *Machine) Exit {
	t.Helper()
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	exit, err := m.Wait(within(t))
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return exit
}

func await(t testing.TB, p *probe) {
	t.Helper()
	select {
	case <-p.wake:
	case <-within(t).Done():
		t.Fatal("the guest wrote nothing")
	}
}
