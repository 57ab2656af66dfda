package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/kvm"
	"spore/virtio/mmio"
	"spore/vmm/boot"
)

// GSIs of the IOAPIC's pins. 0 to 4 are left alone: guests have ideas about them.
const (
	serialGSI   kvm.GSI = 4
	firstGSI    kvm.GSI = 5 // of the virtio devices, in order
	lastGSI     kvm.GSI = 22
	eventGSI            = 23    // generic event device
	kickOffset          = 0x050 // QueueNotify, virtio 1.2 §4.2.2
	kickLength          = 4
	maxRegister         = int(lastGSI-firstGSI) + 1
)

// transport is a device behind its virtio-mmio registers.
type transport interface {
	register
	PauseSoon()
	Pause(context.Context) error
	Resume() error
	SaveState() (mmio.State, error)
	LoadState(mmio.State) error
	Close() error
}

// device is one virtio device of the machine.
type device struct {
	name     string // as in counters and logs
	late     bool   // announced as api.Boot.Late says
	regs     transport
	base     guestmem.GPA
	gsi      kvm.GSI
	kicks    []*os.File // an eventfd for each queue, signalled by the guest
	irq      *os.File   // an eventfd that raises gsi
	irqFD    int        // its number
	counters func() map[string]uint64
}

// newDevice gives a device its address, its interrupt and its event descriptors, tied to KVM, but not yet its registers.
func (m *Machine) newDevice(l line) error {
	n, name := len(m.devs), l.name
	if n >= maxRegister {
		return fmt.Errorf("add %s: no interrupt left after %d devices", name, n)
	}
	d := &device{name: name, late: l.late, base: boot.DeviceBase + guestmem.GPA(n)*boot.DeviceStride, gsi: firstGSI + kvm.GSI(n)}
	var err error
	if d.irq, err = eventfd(name+" interrupt", 0); err != nil { // only written to: no need for the poller
		return err
	}
	d.irqFD = int(d.irq.Fd())
	m.devs = append(m.devs, d) // from here on Machine.release closes it
	flags := unix.EFD_NONBLOCK
	if l.ownKicks {
		flags = 0 // only polled by the device
	}
	for range l.queues {
		f, err := eventfd(name+" kick", flags)
		if err != nil {
			return err
		}
		d.kicks = append(d.kicks, f)
	}
	return m.tie(d)
}

// tie makes KVM signal the device's kicks and take its interrupts.
func (m *Machine) tie(d *device) error {
	for q, f := range d.kicks {
		if err := m.vm.IOEventFD(f, uint64(d.base)+kickOffset, kickLength, uint64(q)); err != nil {
			return fmt.Errorf("%s: kick of queue %d: %w", d.name, q, err)
		}
	}
	if err := m.vm.IRQFD(d.irq, d.gsi); err != nil {
		return fmt.Errorf("%s: interrupt %d: %w", d.name, d.gsi, err)
	}
	return nil
}

// interrupt raises the device's GSI. The device is closed before irq is.
func (d *device) interrupt() { signal(d.irqFD) }

func (d *device) close() error {
	var errs []error
	if d.regs != nil { // it got its model
		errs = append(errs, d.regs.Close())
	}
	for _, f := range append(d.kicks, d.irq) {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// eventfd makes an event counter. With the flag EFD_NONBLOCK the network poller can wait for it.
func eventfd(name string, flags int) (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("make event descriptor for %s: %w", name, os.NewSyscallError("eventfd2", err))
	}
	return os.NewFile(uintptr(fd), name), nil
}
