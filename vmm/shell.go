package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// Shell is an empty VM in the making. KVM_CREATE_VM takes a sixth of a start, and nothing of the configuration is
// needed for it: whoever starts a shell first can read the configuration meanwhile. New takes it over.
type Shell struct {
	made chan struct{} // closed when what follows is valid
	sys  *kvm.System
	vm   *kvm.VM
	err  error
}

// NewShell takes over fd, an open /dev/kvm, and begins to make an empty VM with it. It returns at once; an error comes
// out of New.
func NewShell(fd int) *Shell {
	s := &Shell{made: make(chan struct{})}
	go func() {
		defer close(s.made)
		if s.sys, s.err = kvm.Open(fd); s.err != nil {
			unix.Close(fd)
			return
		}
		s.vm, s.err = s.sys.CreateVM()
	}()
	return s
}

// duplicate is a shell of a device that stays the caller's.
func duplicate(device *os.File) (*Shell, error) {
	fd, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take over /dev/kvm: %w", err)
	}
	return NewShell(fd), nil
}

// take waits for the VM and hands it over. The caller closes both.
func (s *Shell) take() (*kvm.System, *kvm.VM, error) {
	<-s.made
	sys, vm := s.sys, s.vm
	s.sys, s.vm = nil, nil
	return sys, vm, s.err
}

// Close releases a shell that no New has taken over, and does nothing for one that was or for nil.
func (s *Shell) Close() error {
	if s == nil {
		return nil
	}
	sys, vm, _ := s.take()
	var errs []error
	if vm != nil {
		errs = append(errs, vm.Close())
	}
	if sys != nil {
		errs = append(errs, sys.Close())
	}
	return errors.Join(errs...)
}
