package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// holdVM makes a virtual machine that never runs and is never closed. The kernel rewrites its own text (jump labels)
// when the first VM comes and the last one goes, and for the first local APIC that is not enabled; with this one there
// it has done so once, before the snapshot, and never does again. Under emulation by several threads that rewriting is
// not safe: QEMU 7.2 was seen to keep a translation of the breakpoint that stands there meanwhile, and a processor that
// runs into it takes that exception for ever (docs/testing.md).
func holdVM() error {
	fd, err := unix.Open("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold a VM: open /dev/kvm: %w", err)
	}
	system, err := kvm.Open(fd)
	if err != nil {
		return fmt.Errorf("hold a VM: %w", err)
	}
	vm, err := system.CreateVM()
	if err != nil {
		return fmt.Errorf("hold a VM: %w", err)
	}
	if err := vm.CreateIRQChip(); err != nil {
		return fmt.Errorf("hold a VM: %w", err)
	}
	if _, err := vm.CreateVCPU(0); err != nil {
		return fmt.Errorf("hold a VM: %w", err)
	}
	return nil
}
