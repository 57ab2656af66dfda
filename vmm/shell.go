package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// Shell is an empty VM. Nothing of a configuration is needed for it. New takes it over.
type Shell struct {
	sys *kvm.System
	vm  *kvm.VM
}

// NewShell takes over fd, an open /dev/kvm, and makes an empty VM with it. On error the descriptor is closed.
//
// It is made by the calling thread. To do it beside the reading of the configuration, on a thread of its own, saves the shorter of
// the two and costs the start of that thread and the hand-over: natively there was no difference (docs/benchmarks.md).
func NewShell(fd int) (*Shell, error) {
	sys, err := kvm.Open(fd)
	if err != nil {
		return nil, errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return nil, errors.Join(err, sys.Close())
	}
	return &Shell{sys, vm}, nil
}

// duplicate is a shell of a device that stays the caller's.
func duplicate(device *os.File) (*Shell, error) {
	fd, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take over /dev/kvm: %w", err)
	}
	return NewShell(fd)
}

// take hands the VM over. The caller closes both.
func (s *Shell) take() (*kvm.System, *kvm.VM) {
	sys, vm := s.sys, s.vm
	s.sys, s.vm = nil, nil
	return sys, vm
}

// Close releases a shell that no New has taken over, and does nothing for one that was or for nil.
func (s *Shell) Close() error {
	if s == nil {
		return nil
	}
	sys, vm := s.take()
	var errs []error
	if vm != nil {
		errs = append(errs, vm.Close())
	}
	if sys != nil {
		errs = append(errs, sys.Close())
	}
	return errors.Join(errs...)
}
