package mmio

import "spore/virtio"

// The register file, virtio 1.2 §4.2.2. R is read by the driver, W written by it.
const (
	regMagic             = 0x000 // R, "virt"
	regVersion           = 0x004 // R, 2
	regDeviceID          = 0x008 // R
	regVendorID          = 0x00c // R
	regDeviceFeatures    = 0x010 // R, the half that DeviceFeaturesSel selects
	regDeviceFeaturesSel = 0x014 // W
	regDriverFeatures    = 0x020 // W, the half that DriverFeaturesSel selects
	regDriverFeaturesSel = 0x024 // W
	regQueueSel          = 0x030 // W
	regQueueNumMax       = 0x034 // R, 0 for a queue that is not there
	regQueueNum          = 0x038 // W
	regQueueReady        = 0x044 // RW
	regQueueNotify       = 0x050 // W, the kick; usually taken by an ioeventfd
	regInterruptStatus   = 0x060 // R
	regInterruptACK      = 0x064 // W
	regStatus            = 0x070 // RW
	regQueueDescLow      = 0x080 // W
	regQueueDescHigh     = 0x084 // W
	regQueueDriverLow    = 0x090 // W
	regQueueDriverHigh   = 0x094 // W
	regQueueDeviceLow    = 0x0a0 // W
	regQueueDeviceHigh   = 0x0a4 // W
	regSHMLenLow         = 0x0b0 // R, all ones: there is no shared memory region
	regSHMLenHigh        = 0x0b4 // R, likewise
	regSHMBaseLow        = 0x0b8 // R, all ones likewise
	regSHMBaseHigh       = 0x0bc // R, likewise
	regConfigGeneration  = 0x0fc // R
	regConfig            = 0x100 // the device's configuration space
)

// Notify is the offset of the register that the driver kicks by, for ioeventfds.
const Notify = regQueueNotify

const (
	magic   = 0x74726976
	version = 2
	vendor  = 0x524f5053 // "SPOR"

	interruptUsed    = 1 // bits of InterruptStatus
	interruptChanged = 2
)

// transitions lists the legal steps of the status register (virtio 1.2 §3.1.1). A write of the current value
// changes nothing; writing 0 resets; FAILED may be added at any time; NEEDS_RESET is the device's own bit and
// is ignored in what the driver writes.
var transitions = map[uint32]uint32{
	0:                        virtio.StatusAcknowledge,
	virtio.StatusAcknowledge: virtio.StatusAcknowledge | virtio.StatusDriver,
	virtio.StatusAcknowledge | virtio.StatusDriver:                           virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK,
	virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK: running,
}

// running is the status of a device in use.
const running = virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK | virtio.StatusDriverOK

// legal reports whether a status can be reached at all.
func legal(status uint32) bool {
	for at := uint32(0); ; {
		if status&^virtio.StatusFailed == at {
			return true
		}
		to, ok := transitions[at]
		if !ok {
			return false
		}
		at = to
	}
}
