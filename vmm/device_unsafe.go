package vmm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// one is what is written to an eventfd.
var one = [8]byte{1}

// signal adds one to an eventfd without telling the runtime, which would make ready for a call that waits: this one never does, where
// the counter is read by KVM. It fails only for a descriptor that is none.
func signal(fd int) {
	unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}
