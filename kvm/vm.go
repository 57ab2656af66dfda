package kvm

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// GSI is a global system interrupt: the number that KVM routes. 0 to 23 are the pins of the IOAPIC.
type GSI uint32

// VM is one virtual machine: memory slots, interrupt controllers, event descriptors.
//
// Order matters: memory slots first, then CreateIRQChip, then CreateVCPU, then IOEventFD and IRQFD. A slot
// set after anything is on the VM's I/O bus waits for an RCU grace period of several milliseconds.
type VM struct {
	fd       int
	mmapSize int
	sregs2   bool
	xcrs     bool
}

// MemSlot is one range of guest physical memory (struct kvm_userspace_memory_region).
type MemSlot struct {
	Slot     uint32
	GPA      uint64 // page aligned
	Host     []byte // the mapping; it must outlive the VM
	ReadOnly bool   // a guest write becomes an MMIO exit (KVM_MEM_READONLY)
	LogDirty bool   // KVM_MEM_LOG_DIRTY_PAGES
}

const (
	memLogDirty = 1 << 0
	memReadOnly = 1 << 1
)

// SetMemory adds or replaces a slot (KVM_SET_USER_MEMORY_REGION, api.rst 4.35). An empty Host removes it.
func (vm *VM) SetMemory(s MemSlot) error {
	arg := s.raw()
	_, err := ioctlPtr("KVM_SET_USER_MEMORY_REGION", vm.fd, setMemory, &arg)
	return err
}

func (s MemSlot) raw() memSlot {
	arg := memSlot{slot: s.Slot, gpa: s.GPA, size: uint64(len(s.Host))}
	if len(s.Host) > 0 {
		arg.userspaceHVA = hostAddress(s.Host)
	}
	if s.ReadOnly {
		arg.flags |= memReadOnly
	}
	if s.LogDirty {
		arg.flags |= memLogDirty
	}
	return arg
}

// SetTSSAddress gives VT-x three pages that the guest must not use (KVM_SET_TSS_ADDR, api.rst 4.36), and the
// page after them for its identity map. AMD-V ignores both. Call it before CreateVCPU.
func (vm *VM) SetTSSAddress(gpa uint64) error {
	if _, err := ioctl("KVM_SET_TSS_ADDR", vm.fd, setTSSAddr, uintptr(gpa)); err != nil {
		return err
	}
	identity := gpa + 3*4096
	_, err := ioctlPtr("KVM_SET_IDENTITY_MAP_ADDR", vm.fd, setIdentityMap, &identity)
	return err
}

// CreateIRQChip makes the local APICs, the IOAPIC and the 8259 pair in the kernel (KVM_CREATE_IRQCHIP, api.rst 4.24).
func (vm *VM) CreateIRQChip() error {
	_, err := ioctl("KVM_CREATE_IRQCHIP", vm.fd, createIRQChip, 0)
	return err
}

// IRQFD makes every write to f raise gsi in the guest as an edge (KVM_IRQFD, api.rst 4.75).
func (vm *VM) IRQFD(f *os.File, gsi GSI) error {
	return control(f, func(fd uintptr) error {
		_, err := ioctlPtr("KVM_IRQFD", vm.fd, assignIRQFD, &irqfd{fd: uint32(fd), gsi: uint32(gsi)})
		return err
	})
}

const ioeventfdDataMatch = 1 << 0

// IOEventFD makes a guest write of length bytes (1, 2, 4 or 8) of the value match to gpa signal f, without an
// exit (KVM_IOEVENTFD, api.rst 4.59).
func (vm *VM) IOEventFD(f *os.File, gpa uint64, length uint32, match uint64) error {
	return control(f, func(fd uintptr) error {
		arg := ioeventfd{match: match, addr: gpa, length: length, fd: int32(fd), flags: ioeventfdDataMatch}
		_, err := ioctlPtr("KVM_IOEVENTFD", vm.fd, assignIOEventFD, &arg)
		return err
	})
}

// control runs do on f's descriptor without taking it out of the network poller, as f.Fd would.
func control(f *os.File, do func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", f.Name(), err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(fd) }); err != nil {
		return fmt.Errorf("descriptor of %s: %w", f.Name(), err)
	}
	return inner
}

// SetIRQ drives an interrupt line (KVM_IRQ_LINE, api.rst 4.25).
func (vm *VM) SetIRQ(gsi GSI, high bool) error {
	arg := irqLine{irq: uint32(gsi)}
	if high {
		arg.level = 1
	}
	_, err := ioctlPtr("KVM_IRQ_LINE", vm.fd, setIRQLine, &arg)
	return err
}

// IRQChip reads the state of the chip with the given ID (KVM_GET_IRQCHIP, api.rst 4.26).
func (vm *VM) IRQChip(id uint32) (IRQChip, error) {
	c := IRQChip{ID: id}
	_, err := ioctlPtr("KVM_GET_IRQCHIP", vm.fd, getIRQChip, &c)
	return c, err
}

// SetIRQChip writes the state of one chip (KVM_SET_IRQCHIP, api.rst 4.27).
func (vm *VM) SetIRQChip(c *IRQChip) error {
	_, err := ioctlPtr("KVM_SET_IRQCHIP", vm.fd, setIRQChip, c)
	return err
}

// Clock reads the VM's kvmclock (KVM_GET_CLOCK, api.rst 4.29).
func (vm *VM) Clock() (Clock, error) {
	var c Clock
	_, err := ioctlPtr("KVM_GET_CLOCK", vm.fd, getClock, &c)
	return c, err
}

// SetClock sets the VM's kvmclock to c.Nanos (KVM_SET_CLOCK, api.rst 4.30).
func (vm *VM) SetClock(c *Clock) error {
	_, err := ioctlPtr("KVM_SET_CLOCK", vm.fd, setClock, c)
	return err
}

// DirtyLog fills bitmap with the pages of slot that were written since the last call, one bit each
// (KVM_GET_DIRTY_LOG, api.rst 4.8). The bitmap must cover the slot.
func (vm *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	arg := dirtyLog{slot: slot, bitmap: wordAddress(bitmap)}
	_, err := ioctlPtr("KVM_GET_DIRTY_LOG", vm.fd, getDirtyLog, &arg)
	runtime.KeepAlive(bitmap)
	return err
}

// CreateVCPU makes the vCPU whose APIC ID is id (KVM_CREATE_VCPU, api.rst 4.7).
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl("KVM_CREATE_VCPU", vm.fd, createVCPU, uintptr(id))
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	page, err := unix.Mmap(fd, 0, vm.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map run page: %w", os.NewSyscallError("mmap", err))
	}
	return &VCPU{fd: fd, page: page, sregs2: vm.sregs2, xcrs: vm.xcrs, pid: unix.Getpid()}, nil
}

// Close closes the VM's descriptor. The kernel frees the VM when its vCPUs are closed too, which takes some
// 15 ms; a process that is about to exit need not wait for it.
func (vm *VM) Close() error { return os.NewSyscallError("close", unix.Close(vm.fd)) }
