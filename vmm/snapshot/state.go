// Package snapshot is the state file of a machine: everything that makes it what it is but its memory and its disks.
//
// It is a header and then sections in a fixed order, each with a tag and its length. What the kernel defines is kept
// byte for byte as the kernel lays it out; what devices define is their own. A reader refuses what it does not
// know, what is too long, and what is left over: a state file is as untrusted as a guest.
package snapshot

import (
	"errors"

	"spore/kvm"
)

// Version of the format that Encode writes. Decode reads every version from OldestVersion on; golden files of each are
// kept in testdata for ever.
const (
	Version       = 2 // of a device's state, which was JSON before
	OldestVersion = 1
)

// Bounds of a state file. They hold before anything is allocated.
const (
	MaxSize    = 2 << 20 // bytes
	MaxMemory  = 1 << 40 // bytes
	MaxVCPUs   = 16
	MaxDevices = 32
	MaxMSRs    = 256
	MaxCPUID   = 256
	maxName    = 64
	maxDevice  = 64 << 10 // bytes of one device's state
	chips      = 3
)

// ErrFormat is matched by every error about a file that is no state file of ours.
var ErrFormat = errors.New("not a machine state")

// VCPU is one virtual processor.
type VCPU struct {
	MP        kvm.MPState
	Regs      kvm.Regs
	XSave     kvm.XSave
	XCRs      kvm.XCRs
	Sregs     kvm.Sregs
	MSRs      []kvm.MSR
	LAPIC     kvm.LAPIC
	DebugRegs kvm.DebugRegs
	Events    kvm.Events
	CPUID     []kvm.CPUIDEntry // what the guest was shown; it has built on it
}

// Device is one virtio device behind its transport.
type Device struct {
	Name  string
	State []byte // the transport's own
}

// State is a whole machine.
type State struct {
	Memory  int64  // bytes of RAM
	TSCKHz  uint32 // of the host that it ran on; 0 if the host would not say
	VCPUs   []VCPU
	Chips   [chips]kvm.IRQChip // by kvm.IRQChip.ID
	Clock   kvm.Clock
	Devices []Device // in the order of their addresses

	// Blocks has a bit for each BlockSize of the memory file, set where there is anything but a hole. What is a hole need
	// not be mapped from the file when the machine wakes.
	Blocks []uint64
}

// BlockSize is what a bit of State.Blocks stands for, in bytes.
const BlockSize = 2 << 20

// BlockWords is how many words State.Blocks has for that much memory.
func BlockWords(memory int64) int { return int((memory/BlockSize + 63) / 64) }
