package virtiotest

import (
	"encoding/binary"

	"spore/guestmem"
)

// Read reads a 32-bit register.
func (d *Driver) Read(off uint64) uint32 {
	var b [4]byte
	d.Bus.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// Write writes a 32-bit register.
func (d *Driver) Write(off uint64, v uint32) {
	d.Bus.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

// Registers by offset (virtio 1.2 §4.2.2).
const (
	RegDeviceFeatures    = 0x010
	RegDeviceFeaturesSel = 0x014
	RegDriverFeatures    = 0x020
	RegDriverFeaturesSel = 0x024
	RegQueueSel          = 0x030
	RegQueueNumMax       = 0x034
	RegQueueNum          = 0x038
	RegQueueReady        = 0x044
	RegQueueNotify       = 0x050
	RegInterruptStatus   = 0x060
	RegInterruptACK      = 0x064
	RegStatus            = 0x070
	RegQueueDesc         = 0x080
	RegQueueDriver       = 0x090
	RegQueueDevice       = 0x0a0
	RegConfigGeneration  = 0x0fc
	RegConfig            = 0x100
)

// Negotiate brings a reset device to DRIVER_OK with all the features it offers that are in mask.
func (d *Driver) Negotiate(mask uint64) {
	d.T.Helper()
	d.NegotiateFeatures(mask)
	d.rings = nil
	for i, limit := range d.Dev.QueueSizes() {
		d.setUpQueue(i, min(limit, ringSize))
	}
	d.Write(RegStatus, 15)
	if got := d.Read(RegStatus); got != 15 {
		d.T.Fatalf("status is %#x after DRIVER_OK", got)
	}
}

// NegotiateFeatures brings a reset device to FEATURES_OK.
func (d *Driver) NegotiateFeatures(mask uint64) {
	d.T.Helper()
	d.Write(RegStatus, 1)
	d.Write(RegStatus, 3)
	d.Features = 0
	for half := range uint32(2) {
		d.Write(RegDeviceFeaturesSel, half)
		offered := d.Read(RegDeviceFeatures)
		take := offered & uint32(mask>>(32*half))
		d.Write(RegDriverFeaturesSel, half)
		d.Write(RegDriverFeatures, take)
		d.Features |= uint64(take) << (32 * half)
	}
	d.Write(RegStatus, 11)
	if got := d.Read(RegStatus); got != 11 {
		d.T.Fatalf("status is %#x after FEATURES_OK", got)
	}
}

// All accepts every feature.
const All = ^uint64(0)

func (d *Driver) setUpQueue(i int, size uint16) {
	base := d.at.rings + guestmem.GPA(i)*d.at.stride
	r := &ring{size: size, desc: base, avail: base + d.at.stride/4, used: base + d.at.stride/2, writable: map[uint16]uint64{}}
	zero := make([]byte, d.at.stride)
	if err := d.Mem.WriteAt(zero, base); err != nil {
		d.T.Fatal(err)
	}
	d.rings = append(d.rings, r)
	d.Write(RegQueueSel, uint32(i))
	d.Write(RegQueueNum, uint32(size))
	for reg, a := range map[uint64]guestmem.GPA{RegQueueDesc: r.desc, RegQueueDriver: r.avail, RegQueueDevice: r.used} {
		d.Write(reg, uint32(a))
		d.Write(reg+4, uint32(a>>32))
	}
	d.Write(RegQueueReady, 1)
}

// Reset resets the device; everything negotiated is forgotten.
func (d *Driver) Reset() {
	d.Write(RegStatus, 0)
	d.rings, d.buffers = nil, d.at.buffers
}
