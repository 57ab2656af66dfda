package kvm

import (
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes one KVM call with a plain argument, again when a signal interrupts it. KVM_RUN does not go
// through here: it must see the interruption.
func ioctl(name string, fd int, request, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, os.NewSyscallError(name, errno)
		}
	}
}

// ioctlPtr makes one KVM call that reads or writes *p.
func ioctlPtr[T any](name string, fd int, request uintptr, p *T) (int, error) {
	n, err := ioctl(name, fd, request, uintptr(unsafe.Pointer(p)))
	runtime.KeepAlive(p)
	return n, err
}

// ioctlRun enters the guest. unix.Syscall, not RawSyscall, hands the processor over to other goroutines, so
// that the garbage collector never waits for the guest.
func ioctlRun(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), run, 0)
	return errno
}

// hostAddress is the address of a mapping, as KVM wants it.
func hostAddress(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// wordAddress is the same for words of ours, which the caller keeps alive until the call is over. The heap does not move.
func wordAddress(w []uint64) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(w)))) }

// storeWord writes the aligned word at the start of a run page so that another thread's KVM_RUN sees it whole.
func storeWord(page []byte, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(unsafe.SliceData(page))), v)
}

// legacy returns the part of s that is struct kvm_sregs, for kernels without KVM_CAP_SREGS2.
func (s *Sregs) legacy() *[sregsSize]byte { return (*[sregsSize]byte)(unsafe.Pointer(s)) }

// Both views start at the same address and the shorter one is in bounds.
var _ = [1]struct{}{}[unsafe.Sizeof(Sregs{})-sregsSize-8]
