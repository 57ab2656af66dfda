// Package seccomptest holds compiled system-call filters against the tables that they were made from.
package seccomptest

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"

	"spore/jailer/seccomp"
)

// Program loads a compiled filter into an interpreter.
func Program(t testing.TB, compiled []byte) *bpf.VM {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(compiled)/8)
	for i := range raw {
		b := compiled[8*i:]
		raw[i] = bpf.RawInstruction{Op: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter does not disassemble")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// Decide runs the filter on one struct seccomp_data. The interpreter loads words big-endian, the kernel in
// host order: so each 32-bit word is written big-endian, the low word of a 64-bit value first.
func Decide(t testing.TB, vm *bpf.VM, nr, arch uint32, args [6]uint64) int {
	t.Helper()
	words := []uint32{nr, arch, 0, 0}
	for _, a := range args {
		words = append(words, uint32(a), uint32(a>>32))
	}
	var in []byte
	for _, w := range words {
		in = binary.BigEndian.AppendUint32(in, w)
	}
	out, err := vm.Run(in)
	if err != nil {
		t.Fatalf("run filter: %v", err)
	}
	return out
}

// Architectures and actions, with the kernel's values.
const (
	ArchX8664 = 0xc000003e // AUDIT_ARCH_X86_64
	archI386  = 0x40000003 // AUDIT_ARCH_I386
	kill      = uint32(seccomp.Kill)
	x32Bit    = 0x40000000
)

// Compare holds a filter against its table for every call number, with argument values on both sides of every condition. names are the
// calls by number.
func Compare(t *testing.T, compiled []byte, table seccomp.Policy, names map[int]string) {
	t.Helper()
	vm := Program(t, compiled)
	known := map[string]bool{}
	for _, name := range names {
		known[name] = true
	}
	for _, call := range table.Calls() {
		if !known[call] {
			t.Fatalf("%s has no number", call)
		}
	}
	for nr := uint32(0); nr < 600; nr++ {
		name := names[int(nr)]
		for _, args := range samples(table, name) {
			want := uint32(table.Decide(name, args))
			if got := uint32(Decide(t, vm, nr, ArchX8664, args)); got != want {
				t.Errorf("call %d %s %#x: filter says %#x, table %#x", nr, name, args, got, want)
			}
			if got := uint32(Decide(t, vm, nr|x32Bit, ArchX8664, args)); got != kill {
				t.Errorf("x32 call %d: filter says %#x", nr, got)
			}
			if got := uint32(Decide(t, vm, nr, archI386, args)); got != kill {
				t.Errorf("i386 call %d: filter says %#x", nr, got)
			}
		}
	}
}

// samples returns argument lists that meet and miss each condition on the call.
func samples(table seccomp.Policy, call string) [][6]uint64 {
	all := [][6]uint64{{}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}}
	for _, r := range table {
		if r.Call != call {
			continue
		}
		var meets [6]uint64
		for _, a := range r.Args {
			meets[a.Index] = a.Value
		}
		all = append(all, meets)
		for _, a := range r.Args {
			if a.Least { // the nearest that misses; none for 0
				missed := meets
				missed[a.Index]--
				all = append(all, missed)
			}
		}
		for bit := 0; bit < 64; bit++ {
			for i := range meets {
				missed := meets
				missed[i] ^= 1 << bit
				all = append(all, missed)
			}
		}
	}
	return all
}
