package kvm

import "unsafe"

// Struct is a structure of fixed size that belongs to a machine's state.
type Struct interface {
	Regs | Sregs | XSave | XCRs | DebugRegs | LAPIC | MPState | Events | IRQChip | Clock
}

// Bytes is *p as the kernel lays it out, without copying. Every pattern of bits is a value of a Struct, so the bytes may
// be written too; whether they make sense is judged by the kernel when they are set.
func Bytes[T Struct](p *T) []byte {
	// SAFETY: T has no pointers, and the slice keeps *p alive.
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}
