package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual processor. All methods but Kick and Close belong to the goroutine that called Bind.
type VCPU struct {
	fd     int
	page   []byte // struct kvm_run and the PIO data pages
	sregs2 bool
	xcrs   bool // the processor has XSAVE
	pid    int
	tid    atomic.Int32 // the thread that runs it; 0 before Bind
}

// Offsets into struct kvm_run (linux/kvm.h). The word at 0 is request_interrupt_window, immediate_exit and
// padding, all written by us only.
const (
	offExitReason = 8
	offUnion      = 32
	offMMIOData   = 40
	offMMIOLen    = 48
	offMMIOWrite  = 52
	runPageMin    = 4096

	immediateExit = 1 << 8 // the second byte of the word at 0
)

// ExitReason is why KVM_RUN came back (KVM_EXIT_*).
type ExitReason uint32

// The exits that a machine of ours can see.
const (
	ExitUnknown       ExitReason = 0
	ExitIO            ExitReason = 2
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitShutdown      ExitReason = 8 // triple fault
	ExitFailEntry     ExitReason = 9
	ExitInterrupted   ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
)

var exitNames = map[ExitReason]string{
	ExitUnknown: "unknown", ExitIO: "pio", ExitDebug: "debug", ExitHLT: "hlt", ExitMMIO: "mmio",
	ExitShutdown: "shutdown", ExitFailEntry: "fail-entry", ExitInterrupted: "interrupted",
	ExitInternalError: "internal-error", ExitSystemEvent: "system-event",
}

// String returns the reason's name, or its number when it has none.
func (r ExitReason) String() string {
	if s, ok := exitNames[r]; ok {
		return s
	}
	return fmt.Sprintf("exit-%d", uint32(r))
}

// Exit says why Run returned. It is valid until the next Run.
type Exit struct {
	Reason ExitReason
	Addr   uint64 // ExitIO: port. ExitMMIO: guest physical address
	Data   []byte // ExitIO, ExitMMIO: what was written, or, zeroed, what must be filled in
	Size   int    // ExitIO: bytes of one access; Data holds len(Data)/Size of them, all to the same port
	Write  bool
	Detail [4]uint64 // ExitInternalError: suberror and data; ExitFailEntry: the hardware's reason; ExitSystemEvent: type
}

// ErrInterrupted is returned by Run when a kick or another signal brought the vCPU back.
var ErrInterrupted = errors.New("vCPU interrupted")

// errRunPage means that the kernel described an access outside the run page.
var errRunPage = errors.New("run page describes data outside itself")

// Bind locks the calling goroutine to its thread and makes it the one that runs the vCPU.
func (v *VCPU) Bind() {
	runtime.LockOSThread()
	v.tid.Store(int32(unix.Gettid()))
}

// Run enters the guest until something needs the VMM. A read exit's Data is zeroed before it is returned, so
// that a device which does not answer cannot leak what an earlier exit left in the page.
func (v *VCPU) Run() (Exit, error) {
	switch errno := ioctlRun(v.fd); errno {
	case 0:
		return v.decode()
	case unix.EINTR, unix.EAGAIN:
		return Exit{Reason: ExitInterrupted}, ErrInterrupted
	default:
		return Exit{}, os.NewSyscallError("KVM_RUN", errno)
	}
}

func (v *VCPU) word(off int) uint32 { return binary.LittleEndian.Uint32(v.page[off:]) }
func (v *VCPU) long(off int) uint64 { return binary.LittleEndian.Uint64(v.page[off:]) }

func (v *VCPU) decode() (Exit, error) {
	e := Exit{Reason: ExitReason(v.word(offExitReason))}
	switch e.Reason {
	case ExitIO:
		return v.decodeIO(e)
	case ExitMMIO:
		n := min(v.word(offMMIOLen), 8)
		e.Addr = v.long(offUnion)
		e.Data = v.page[offMMIOData : offMMIOData+n]
		e.Size = int(n)
		e.Write = v.page[offMMIOWrite] != 0
		if !e.Write {
			clear(e.Data)
		}
	case ExitInternalError:
		e.Detail[0] = uint64(v.word(offUnion))
		for i := range min(v.word(offUnion+4), 3) {
			e.Detail[1+i] = v.long(offUnion + 8 + 8*int(i))
		}
	case ExitFailEntry:
		e.Detail[0] = v.long(offUnion)
	case ExitSystemEvent:
		e.Detail[0] = uint64(v.word(offUnion))
	}
	return e, nil
}

func (v *VCPU) decodeIO(e Exit) (Exit, error) {
	direction, size := v.page[offUnion], int(v.page[offUnion+1])
	port := binary.LittleEndian.Uint16(v.page[offUnion+2:])
	count, off := uint64(v.word(offUnion+4)), v.long(offUnion+8)
	room := uint64(len(v.page))
	if size == 0 || size > 4 || count > room || off > room || off+count*uint64(size) > room {
		return e, errRunPage
	}
	e.Addr, e.Size, e.Write = uint64(port), size, direction == 1
	e.Data = v.page[off : off+count*uint64(size)]
	if !e.Write {
		clear(e.Data)
	}
	return e, nil
}

// Kick makes the current or next Run return ErrInterrupted. Any goroutine may call it, at any time. A kick is
// sticky until ClearKick, so none is lost between two Runs.
//
// The signal is SIGURG, for which every Go program already has a handler that expects spurious ones.
func (v *VCPU) Kick() error {
	storeWord(v.page, immediateExit)
	if tid := v.tid.Load(); tid != 0 {
		return os.NewSyscallError("tgkill", unix.Tgkill(v.pid, int(tid), unix.SIGURG))
	}
	return nil
}

// ClearKick forgets kicks. Only the thread that runs the vCPU calls it, before it looks at what it was kicked for.
func (v *VCPU) ClearKick() { storeWord(v.page, 0) }

// Finish completes an access that the last exit left half done (a read whose value has been filled in), without
// running the guest any further, so that the registers are whole. It leaves the vCPU kicked.
func (v *VCPU) Finish() error {
	storeWord(v.page, immediateExit)
	_, err := v.Run()
	if errors.Is(err, ErrInterrupted) {
		return nil
	}
	if err == nil {
		return errors.New("finish access: vCPU exited again")
	}
	return err
}

// Close unmaps the run page and closes the descriptor. No Run may be in progress and no Kick may follow.
func (v *VCPU) Close() error {
	err := os.NewSyscallError("munmap", unix.Munmap(v.page))
	return errors.Join(err, os.NewSyscallError("close", unix.Close(v.fd)))
}
