package kvm

import (
	"encoding/binary"
	"fmt"
	"os"
)

// MaxCPUID is how many entries a vCPU can be given.
const MaxCPUID = maxCPUID

// cpuidSize is an entry's size in AppendCPUID's form.
const cpuidSize = 7 * 4

// AppendCPUID writes entries as seven little-endian words each: function, index, flags, EAX, EBX, ECX, EDX.
func AppendCPUID(b []byte, entries []CPUIDEntry) []byte {
	for _, e := range entries {
		for _, w := range [...]uint32{e.Function, e.Index, e.Flags, e.EAX, e.EBX, e.ECX, e.EDX} {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
	}
	return b
}

// ParseCPUID reads what AppendCPUID wrote: whole entries, at most MaxCPUID of them.
func ParseCPUID(b []byte) ([]CPUIDEntry, error) {
	if len(b)%cpuidSize != 0 || len(b) > MaxCPUID*cpuidSize {
		return nil, fmt.Errorf("%d bytes of CPUID leaves, want at most %d of %d", len(b), MaxCPUID, cpuidSize)
	}
	entries := make([]CPUIDEntry, len(b)/cpuidSize)
	for i := range entries {
		w := func(n int) uint32 { return binary.LittleEndian.Uint32(b[i*cpuidSize+4*n:]) }
		entries[i] = CPUIDEntry{Function: w(0), Index: w(1), Flags: w(2), EAX: w(3), EBX: w(4), ECX: w(5), EDX: w(6)}
	}
	return entries, nil
}

// SupportedCPUID is System's method of that name, for a process that makes no VM. device is an open /dev/kvm, and stays the caller's.
func SupportedCPUID(device *os.File) (entries []CPUIDEntry, err error) {
	err = control(device, func(fd uintptr) (err error) {
		entries, err = (&System{fd: int(fd)}).SupportedCPUID()
		return err
	})
	return entries, err
}
