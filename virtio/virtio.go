// Package virtio is what every device model and every transport agree on (virtio 1.2): a device knows queues
// and guest memory, never registers or KVM; a transport knows registers, never requests.
package virtio

import (
	"context"
	"encoding/json"
	"os"

	"spore/guestmem"
	"spore/virtio/queue"
)

// Type is a device ID (virtio 1.2 §5).
type Type uint32

// The devices that Spore has, or will have.
const (
	TypeNet     Type = 1
	TypeBlock   Type = 2
	TypeConsole Type = 3
	TypeRNG     Type = 4
	TypeBalloon Type = 5
	TypeVsock   Type = 19
	TypePmem    Type = 27
)

// Feature bits that belong to the transport and the queues (virtio 1.2 §6).
const (
	FeatureIndirect = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1; a driver without it is refused
)

// Status bits of the device status field (virtio 1.2 §2.1).
const (
	StatusAcknowledge = 1
	StatusDriver      = 2
	StatusDriverOK    = 4
	StatusFeaturesOK  = 8
	StatusNeedsReset  = 64
	StatusFailed      = 128
)

// Device is a virtio device model.
//
//	stopped ──Run──► running ──ctx ends──► stopped ──Run──► running …
//	   │ SaveState, LoadState only here
//
// Pause, device reset, snapshot and shutdown are all "end ctx, wait for Run". When Run has returned, every
// popped chain has been pushed and no goroutine of the device touches guest memory.
type Device interface {
	Type() Type
	// Features are the bits the device offers beside the transport's own.
	Features() uint64
	// QueueSizes is the maximum size of each queue, in descriptors.
	QueueSizes() []uint16
	// ReadConfig fills p from the configuration space at off, little endian; bytes past the end are zero.
	ReadConfig(p []byte, off uint32)
	// WriteConfig takes a driver's write to the configuration space; bytes past the end are ignored.
	WriteConfig(p []byte, off uint32)
	// Run serves the queues until ctx ends, which is no error. An error makes the transport set
	// DEVICE_NEEDS_RESET. It must return promptly once ctx has ended: a vCPU may be waiting. A panic of Run is
	// such an error too; goroutines it starts use Contain for theirs.
	Run(ctx context.Context, a Active) error
	// SaveState returns what a snapshot keeps. Only while stopped.
	SaveState() (json.RawMessage, error)
	// LoadState takes what SaveState returned; it is untrusted. Only while stopped.
	LoadState(json.RawMessage) error
}

// Active is what a device may use while it runs.
type Active struct {
	Features uint64 // negotiated
	Mem      *guestmem.Memory
	Queues   []*queue.Queue  // as in QueueSizes; nil where the driver set none up
	Used     func(queue int) // raise the used-buffer interrupt; the device asks Queue.NeedsInterrupt first
	Changed  func()          // raise the configuration-change interrupt

	Kicks func(queue int) *os.File // the eventfd of a queue's kicks, for a KickListener; nil for others
}

// KickListener is a device whose Run listens to the eventfds of kicks itself, together with what else it waits for. Its queues cannot
// be waited for, and the runtime's poller need not know the eventfds.
type KickListener interface {
	OwnKicks()
}
