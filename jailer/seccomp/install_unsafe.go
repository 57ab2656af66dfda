package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxInstructions is the kernel's BPF_MAXINSNS.
const maxInstructions = 4096

const instructionSize = 8 // struct sock_filter

// ErrProgram says that the bytes are not a seccomp program.
var ErrProgram = errors.New("not a seccomp program")

// Install puts the program, an array of struct sock_filter as libseccomp exports it, on every thread of the
// process (SECCOMP_FILTER_FLAG_TSYNC), for good. The process has no_new_privs; the jail sees to it. It fails if a thread
// already has another filter. See seccomp(2).
func Install(program []byte) error { return install(program, unix.SECCOMP_FILTER_FLAG_TSYNC) }

// InstallThread puts the program on the calling thread only, beside what it already has: the narrower one
// decides. The caller has locked its goroutine to the thread and never unlocks it.
func InstallThread(program []byte) error { return install(program, 0) }

// Filter is the program as the kernel takes it.
func Filter(program []byte) ([]unix.SockFilter, error) {
	n := len(program) / instructionSize
	if n == 0 || n > maxInstructions || len(program)%instructionSize != 0 {
		return nil, fmt.Errorf("install filter: %w: %d bytes", ErrProgram, len(program))
	}
	filter := make([]unix.SockFilter, n)
	for i := range filter {
		b := program[i*instructionSize:]
		filter[i] = unix.SockFilter{
			Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:]),
		}
	}
	return filter, nil
}

func install(program []byte, flags uintptr) error {
	filter, err := Filter(program)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// SAFETY: prog and filter are kept alive past the call, which copies them.
	tid, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if tid != 0 { // a positive result names the thread that could not follow
		return fmt.Errorf("install filter: thread %d has another filter", tid)
	}
	return nil
}
