// Package kvm is the KVM interface of the kernel and nothing else: handles for the system, a VM and a vCPU,
// and one method for each ioctl that Spore uses. It knows no device and no policy.
//
// The methods of one VCPU are called by the thread that runs it, except Kick. Errors are *os.SyscallError
// with the name of the ioctl.
package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// System is an open /dev/kvm.
type System struct {
	fd       int
	mmapSize int
}

// ErrUnsupported is matched by the error of Open when the kernel's KVM lacks something required.
var ErrUnsupported = errors.New("KVM is not good enough")

const apiVersion = 12 // the only one, since 2007

// Open takes over the descriptor fd, an open /dev/kvm, and checks the API version and the required
// capabilities. On error the descriptor stays the caller's.
func Open(fd int) (*System, error) {
	v, err := ioctl("KVM_GET_API_VERSION", fd, getAPIVersion, 0)
	if err != nil {
		return nil, err
	}
	if v != apiVersion {
		return nil, fmt.Errorf("%w: API version %d, want %d", ErrUnsupported, v, apiVersion)
	}
	s := &System{fd: fd}
	for _, r := range requiredCaps {
		if s.Check(r.Cap) == 0 {
			return nil, fmt.Errorf("%w: no KVM_CAP_%s (%s)", ErrUnsupported, r.Name, r.Why)
		}
	}
	if s.mmapSize, err = ioctl("KVM_GET_VCPU_MMAP_SIZE", fd, getVCPUMmapSize, 0); err != nil {
		return nil, err
	}
	if s.mmapSize < runPageMin {
		return nil, fmt.Errorf("%w: run page of %d bytes", ErrUnsupported, s.mmapSize)
	}
	return s, nil
}

// Check returns the value of a capability, 0 when it is absent (KVM_CHECK_EXTENSION, api.rst 4.4).
func (s *System) Check(c Capability) int {
	n, err := ioctl("KVM_CHECK_EXTENSION", s.fd, checkExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return n
}

// SupportedCPUID returns what KVM can virtualise (KVM_GET_SUPPORTED_CPUID, api.rst 4.46).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	t := &cpuidTable{count: maxCPUID}
	if _, err := ioctlPtr("KVM_GET_SUPPORTED_CPUID", s.fd, getSupportedCPU, t); err != nil {
		return nil, err
	}
	return t.entries[:min(t.count, maxCPUID)], nil
}

// MSRIndices returns the MSRs whose values make up a vCPU's state (KVM_GET_MSR_INDEX_LIST, api.rst 4.3).
func (s *System) MSRIndices() ([]uint32, error) {
	l := &msrList{count: maxMSRs}
	if _, err := ioctlPtr("KVM_GET_MSR_INDEX_LIST", s.fd, getMSRIndexList, l); err != nil {
		return nil, err
	}
	return l.indices[:min(l.count, maxMSRs)], nil
}

// CreateVM makes an empty VM (KVM_CREATE_VM, api.rst 4.2).
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl("KVM_CREATE_VM", s.fd, createVM, 0)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	return &VM{fd: fd, mmapSize: s.mmapSize, sregs2: s.Check(CapSregs2) > 0, xcrs: s.Check(CapXCRs) > 0}, nil
}

// Close closes /dev/kvm. VMs made from it live on.
func (s *System) Close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }
