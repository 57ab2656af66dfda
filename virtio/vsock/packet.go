package vsock

import (
	"encoding/binary"
)

// CID is a vsock context identifier, virtio 1.2 §5.10.4: the address of a machine. The upper half is reserved.
type CID uint64

// HostCID is the host's address.
const HostCID CID = 2

// MinGuestCID is the lowest address a guest may have; below it are the reserved ones.
const MinGuestCID CID = 3

// Port is a vsock port.
type Port uint32

// headerSize is struct virtio_vsock_hdr, virtio 1.2 §5.10.6, in bytes.
const headerSize = 44

// maxPayload bounds the payload of one packet to the guest in bytes. It is the most that Linux sends in one.
const maxPayload = 64 << 10

// typeStream is the only socket type of this device, virtio 1.2 §5.10.6.
const typeStream = 1

// operation is the verb of a packet, virtio 1.2 §5.10.6.
type operation uint16

const (
	opInvalid       operation = 0
	opRequest       operation = 1 // asks for a connection
	opResponse      operation = 2 // accepts one
	opReset         operation = 3 // refuses or ends one
	opShutdown      operation = 4 // ends one or both directions, see the shutdown flags
	opReadWrite     operation = 5 // carries stream bytes
	opCreditUpdate  operation = 6 // carries nothing but credit
	opCreditRequest operation = 7 // asks for a credit update
)

// The flags of opShutdown, virtio 1.2 §5.10.6.5. They are hints about the sender's side.
const (
	shutdownReceive = 1 << 0 // the sender will not receive any more
	shutdownSend    = 1 << 1 // the sender will not send any more
	shutdownBoth    = shutdownReceive | shutdownSend
)

// header is struct virtio_vsock_hdr: a private copy, taken once.
type header struct {
	srcCID, dstCID   CID
	srcPort, dstPort Port
	length           uint32 // bytes of payload
	kind             uint16 // socket type
	op               operation
	flags            uint32
	credit           credit
}

// credit is what each side tells of its receive buffer in every packet, virtio 1.2 §5.10.6.3.
type credit struct {
	bufAlloc uint32 // bytes of receive buffer
	fwdCnt   uint32 // bytes taken out of it so far, modulo 2³²
}

func parseHeader(b *[headerSize]byte) header {
	le := binary.LittleEndian
	return header{
		srcCID:  CID(le.Uint64(b[0:])),
		dstCID:  CID(le.Uint64(b[8:])),
		srcPort: Port(le.Uint32(b[16:])),
		dstPort: Port(le.Uint32(b[20:])),
		length:  le.Uint32(b[24:]),
		kind:    le.Uint16(b[28:]),
		op:      operation(le.Uint16(b[30:])),
		flags:   le.Uint32(b[32:]),
		credit:  credit{bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:])},
	}
}

func (h header) put(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], uint64(h.srcCID))
	le.PutUint64(b[8:], uint64(h.dstCID))
	le.PutUint32(b[16:], uint32(h.srcPort))
	le.PutUint32(b[20:], uint32(h.dstPort))
	le.PutUint32(b[24:], h.length)
	le.PutUint16(b[28:], h.kind)
	le.PutUint16(b[30:], uint16(h.op))
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.credit.bufAlloc)
	le.PutUint32(b[40:], h.credit.fwdCnt)
}

// verdict is what becomes of a packet from the guest before any connection is looked at.
type verdict int

const (
	accept verdict = iota // for a connection
	drop                  // counted and forgotten
	reset                 // answered with opReset
)

// judge checks what can be checked of h without a connection. payload is how many bytes follow it in its chain.
func (h header) judge(guest CID, payload uint64) verdict {
	switch {
	case h.srcCID != guest:
		return drop // forged; an answer could only go to somebody else
	case h.op == opReset && (h.kind != typeStream || h.dstCID != HostCID):
		return drop // a reset is never answered
	case h.dstCID != HostCID, h.kind != typeStream:
		return reset // virtio 1.2 §5.10.6.4.2 for the type
	case h.op == opInvalid || h.op > opCreditRequest:
		return reset
	case h.op == opReadWrite && uint64(h.length) > payload:
		return reset // bytes of the stream are missing
	}
	return accept
}

// refusal is the answer to a packet that no connection takes.
func (h header) refusal() header {
	return header{srcCID: h.dstCID, dstCID: h.srcCID, srcPort: h.dstPort, dstPort: h.srcPort, kind: h.kind, op: opReset}
}

// split divides a chain's buffers after the header: n bytes at their start, and what follows, appended to rest as at
// most limit bytes in at most segments pieces. It reports the number of bytes in rest. The driver may cut a packet
// into buffers wherever it likes, virtio 1.2 §2.7.4.
func split(buffers [][]byte, n int, rest [][]byte, limit uint64, segments int) ([][]byte, uint64) {
	var total uint64
	for _, b := range buffers {
		if n >= len(b) {
			n -= len(b)
			continue
		}
		b = b[n:]
		n = 0
		if segments == 0 || limit == 0 {
			break
		}
		if uint64(len(b)) > limit {
			b = b[:limit]
		}
		rest = append(rest, b)
		total += uint64(len(b))
		limit -= uint64(len(b))
		segments--
	}
	return rest, total
}

// scatter copies p to the start of buffers.
func scatter(buffers [][]byte, p []byte) {
	for _, b := range buffers {
		if len(p) == 0 {
			return
		}
		p = p[copy(b, p):]
	}
}

// gather fills p from the start of buffers and returns how much it filled.
func gather(buffers [][]byte, p []byte) int {
	n := 0
	for _, b := range buffers {
		if n == len(p) {
			break
		}
		n += copy(p[n:], b)
	}
	return n
}

// lengthOf is the length of buffers altogether.
func lengthOf(buffers [][]byte) uint64 {
	var n uint64
	for _, b := range buffers {
		n += uint64(len(b))
	}
	return n
}
