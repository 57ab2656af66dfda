package net

import "encoding/binary"

// headerSize is struct virtio_net_hdr with num_buffers, which VERSION_1 always has (virtio 1.2 §5.1.6, NET-02).
const headerSize = 12

// Flags and kinds of segmentation offload in a header.
const (
	needsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is to be completed
	dataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID: it was looked at, and is right

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoECN   = 0x80 // beside either
)

const (
	// minSegment is the least that a large TCP segment may be cut into, in bytes of payload: what Linux takes of a peer
	// (tcp_min_snd_mss). Less lets a guest turn one frame into as many packets as it has bytes.
	minSegment   = 48
	minTCPHeader = 20
)

// header is a private copy of struct virtio_net_hdr, little endian.
type header [headerSize]byte

func (h *header) flags() byte         { return h[0] }
func (h *header) gsoType() byte       { return h[1] }
func (h *header) headerLen() int      { return int(binary.LittleEndian.Uint16(h[2:])) }
func (h *header) gsoSize() int        { return int(binary.LittleEndian.Uint16(h[4:])) }
func (h *header) csumStart() int      { return int(binary.LittleEndian.Uint16(h[6:])) }
func (h *header) csumOffset() int     { return int(binary.LittleEndian.Uint16(h[8:])) }
func (h *header) setBuffers(n uint16) { binary.LittleEndian.PutUint16(h[10:], n) }

// verdict is what a header makes of its frame.
type verdict uint8

const (
	pass verdict = iota
	badFrame
	badOffload
)

// fromGuest judges the header of a frame of n bytes that the guest sends, by what it has negotiated, and makes of it what the
// other side is given: nothing but what was understood. mtu is the largest payload of a frame that is not to be cut, 0 if unknown.
func (h *header) fromGuest(n uint64, features uint64, mtu int) verdict {
	if n < minFrame || n > maxFrame {
		return badFrame
	}
	var out header
	if h.flags()&needsCsum != 0 { // other flags are not a driver's to set (virtio 1.2 §5.1.6.2)
		end := uint64(h.csumStart()) + uint64(h.csumOffset()) + 2
		if features&featureCsum == 0 || h.csumStart() < minFrame || end > n {
			return badOffload
		}
		out[0] = needsCsum
		copy(out[6:10], h[6:10])
	}
	kind := h.gsoType()
	if kind == gsoNone {
		if mtu > 0 && n > uint64(mtu+frameRoom) {
			return badFrame
		}
		*h = out
		return pass
	}
	var need uint64
	switch kind &^ gsoECN {
	case gsoTCPv4:
		need = featureHostTSO4
	case gsoTCPv6:
		need = featureHostTSO6
	default:
		return badOffload
	}
	if kind&gsoECN != 0 {
		need |= featureHostECN
	}
	// The length of all headers is a hint that no one may trust, but Linux refuses one that is longer than the frame.
	if features&need != need || out[0] == 0 || h.gsoSize() < minSegment || uint64(h.headerLen()) > n ||
		uint64(h.csumStart())+minTCPHeader > n {
		return badOffload
	}
	copy(out[1:6], h[1:6])
	*h = out
	return pass
}

// toGuest judges the header of a frame that the other side sends: whether the guest has said that it takes such.
func (h *header) toGuest(features uint64) bool {
	var need uint64
	if h.flags()&needsCsum != 0 {
		need = featureGuestCsum
	}
	switch h.gsoType() &^ gsoECN {
	case gsoNone:
	case gsoTCPv4:
		need |= featureGuestTSO4
	case gsoTCPv6:
		need |= featureGuestTSO6
	default:
		return false
	}
	if h.gsoType()&gsoECN != 0 {
		need |= featureGuestECN
	}
	h[0] &= needsCsum | dataValid
	if features&featureGuestCsum == 0 {
		h[0] = 0 // virtio 1.2 §5.1.6.4.1
	}
	return features&need == need
}
