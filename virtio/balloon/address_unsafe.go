package balloon

import (
	"unsafe"

	"spore/guestmem"
)

// address returns the guest physical address of p, a slice of guest memory; false if it is none.
func address(mem *guestmem.Memory, p []byte) (uint64, bool) {
	if len(p) == 0 {
		return 0, false
	}
	at := uintptr(unsafe.Pointer(&p[0]))
	for _, r := range mem.Regions() {
		base := uintptr(unsafe.Pointer(&r.Host[0]))
		if at >= base && at-base < uintptr(len(r.Host)) {
			return uint64(r.Base) + uint64(at-base), true
		}
	}
	return 0, false
}
