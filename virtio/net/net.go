// Package net is the virtio network device (virtio 1.2 §5.1) between a guest's driver and one descriptor that whole Ethernet
// frames are read from and written to: a tap, or one end of a socket pair. Frames move between the descriptor and guest memory
// without a copy in between; of each, the device sees the virtio_net_hdr and nothing else.
package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"spore/virtio"
	"spore/virtio/rate"
)

// Feature bits, virtio 1.2 §5.1.3. There is no control queue, and so nothing that takes one.
const (
	featureCsum      = 1 << 0  // the device takes frames with partial checksums
	featureGuestCsum = 1 << 1  // the driver does
	featureMTU       = 1 << 3  //
	featureMAC       = 1 << 5  //
	featureGuestTSO4 = 1 << 7  // the driver takes large TCP segments
	featureGuestTSO6 = 1 << 8  //
	featureGuestECN  = 1 << 9  //
	featureHostTSO4  = 1 << 11 // the device does
	featureHostTSO6  = 1 << 12 //
	featureHostECN   = 1 << 13 //
	featureMergeable = 1 << 15 // a received frame may lie in several buffers
	featureStatus    = 1 << 16 //

	offloads = featureCsum | featureGuestCsum | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureHostTSO4 | featureHostTSO6 | featureHostECN
)

// Queues of the only pair.
const (
	receiveQueue  = 0 // to the guest
	transmitQueue = 1 // from the guest
	queueSize     = 256
)

const (
	// configSize is struct virtio_net_config up to and including mtu, virtio 1.2 §5.1.4.
	configSize   = 12
	statusLinkUp = 1 // VIRTIO_NET_S_LINK_UP
)

// Sizes of frames in bytes, without the header.
const (
	minFrame  = 14             // an Ethernet header
	maxFrame  = 65535 + 14 + 4 // the largest IP packet, with a VLAN tag
	frameRoom = 14 + 4         // what is around the payload that an MTU counts
	plainMTU  = 1500
)

// Limits of Config.MTU.
const (
	minMTU = 68
	maxMTU = 65535
)

// Config is what a Device is made of.
type Config struct {
	File    *os.File // a tap (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, header size 12) or a SOCK_SEQPACKET socket; the device takes it over
	MAC     [6]byte  // of the guest's interface
	MTU     uint16   // told to the guest, 68 or more; 0 tells nothing
	Offload bool     // the other side of File takes and sends partial checksums and large TCP segments

	In    rate.Rate  // bound on frames to the guest; the zero value is none
	Out   rate.Rate  // … from the guest
	Clock rate.Clock // for both; nil is the machine's
}

// Device is a virtio network device. It implements virtio.Device.
type Device struct {
	port     port
	mtu      int // largest payload of a frame that is not to be segmented; 0 is unknown
	features uint64
	config   [configSize]byte // but for the status
	in, out  *rate.Limiter    // nil: no bound
	clock    rate.Clock
	counters counters

	down     atomic.Bool // the other side of the descriptor has gone
	told     bool        // what the driver was last told: the link is up
	overflow []byte      // where a frame goes that is larger than the guest's buffers; made when first needed
}

var (
	_ virtio.Device       = (*Device)(nil)
	_ virtio.KickListener = (*Device)(nil)
)

// New makes a device and takes over cfg.File.
func New(cfg Config) (*Device, error) {
	switch {
	case cfg.File == nil:
		return nil, errors.New("make network device: no descriptor")
	case cfg.MAC[0]&1 != 0 || cfg.MAC == [6]byte{}:
		return nil, fmt.Errorf("make network device: %x is no interface's address", cfg.MAC)
	case cfg.MTU != 0 && cfg.MTU < minMTU:
		return nil, fmt.Errorf("make network device: an MTU of %d bytes, want %d to %d", cfg.MTU, minMTU, maxMTU)
	case !cfg.In.Valid() || !cfg.Out.Valid():
		return nil, errors.New("make network device: negative rate")
	}
	if cfg.Clock == nil {
		cfg.Clock = rate.System{}
	}
	p, err := newPort(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("make network device: %w", err)
	}
	d := &Device{
		port: p, mtu: int(cfg.MTU), told: true, clock: cfg.Clock,
		features: featureMAC | featureStatus | featureMergeable,
		in:       rate.NewLimiter(cfg.In, cfg.Clock), out: rate.NewLimiter(cfg.Out, cfg.Clock),
	}
	copy(d.config[:], cfg.MAC[:])
	binary.LittleEndian.PutUint16(d.config[8:], 1) // max_virtqueue_pairs
	if cfg.MTU != 0 {
		d.features |= featureMTU
		binary.LittleEndian.PutUint16(d.config[10:], cfg.MTU)
	}
	if cfg.Offload {
		d.features |= offloads
	}
	return d, nil
}

// Type is virtio.TypeNet.
func (d *Device) Type() virtio.Type { return virtio.TypeNet }

// Features are the device's own bits, virtio 1.2 §5.1.3.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes is a queue in each direction.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig reads struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu.
func (d *Device) ReadConfig(p []byte, off uint32) {
	space := d.config
	if !d.down.Load() {
		space[6] = statusLinkUp
	}
	clear(p)
	if off < configSize {
		copy(p, space[off:])
	}
}

// WriteConfig does nothing: an address is set through a control queue, which is not offered (NET-04).
func (d *Device) WriteConfig([]byte, uint32) {}

// hangUp takes the link down, for good: the other side of the descriptor has gone. Frames of the guest are dropped from now on.
func (d *Device) hangUp(a virtio.Active) {
	if d.down.Swap(true) {
		return
	}
	d.told = false
	a.Changed()
}

// Close gives the descriptor back to the system. The device must be stopped.
func (d *Device) Close() error { return d.port.close() }

// OwnKicks says that Run listens for kicks itself: see virtio.KickListener.
func (d *Device) OwnKicks() {}
