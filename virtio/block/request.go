package block

import (
	"encoding/binary"
	"math"
)

// Request types, virtio 1.2 §5.2.6. Everything else, the legacy SCSI (2) and barrier types included, is unsupported.
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Status bytes, virtio 1.2 §5.2.6.
const (
	statusOK          = 0
	statusIOError     = 1
	statusUnsupported = 2
)

const (
	sectorSize  = 512
	headerSize  = 16 // le32 type, le32 reserved, le64 sector
	segmentSize = 16 // le64 sector, le32 number of sectors, le32 flags
	idSize      = 20 // of the VIRTIO_BLK_T_GET_ID answer

	// maxSegments bounds the segments of one discard or write-zeroes request (max_discard_seg, max_write_zeroes_seg).
	maxSegments = 16
	// maxSegmentSectors bounds the sectors of one such segment: 1 GiB.
	maxSegmentSectors = 1 << 21

	segmentUnmap = 1 << 0 // the only flag of a segment
)

// segment is one range of a discard or write-zeroes request, already checked to be inside the disk.
type segment struct {
	offset, length int64 // bytes
	unmap          bool
}

// request is one parsed chain. It belongs to one goroutine at a time and is used again and again:
// its slices keep their capacity, so a request in steady state allocates nothing.
type request struct {
	head   uint16
	kind   uint32
	status []byte   // the chain's last writable byte, in guest memory
	room   uint64   // writable bytes before it
	bufs   [][]byte // what is left of the data, in guest memory; only the slice headers are ours
	offset int64    // where bufs[0] goes on the disk, in bytes
	left   uint64   // bytes in bufs
	done   uint64   // bytes moved so far

	segments [maxSegments]segment
	count    int // segments in use
}

// verdict is what parse says of a chain.
type verdict uint8

const (
	verdictRun       verdict = iota // execute it
	verdictAnswer                   // only answer with the status returned
	verdictMalformed                // it has no room for a status: give it back with 0 bytes written
)

// geometry is what parse needs to know of the device.
type geometry struct {
	sectors  uint64
	readOnly bool
	features uint64 // negotiated
}

// parse fills r from a chain's buffers. The header and the segments are copied out of guest memory once and the
// copies judged. Nothing is assumed of the framing (virtio 1.2 §2.7.4.1): the header may be split and data may share
// its descriptor; the status is the last writable byte. The status returned is meaningful for verdictAnswer.
func (r *request) parse(g geometry, head uint16, readable, writable [][]byte) (verdict, byte) {
	r.head, r.bufs, r.left, r.done, r.count, r.offset = head, r.bufs[:0], 0, 0, 0, 0
	r.status = nil
	for i := len(writable) - 1; i >= 0 && r.status == nil; i-- {
		if n := len(writable[i]); n > 0 {
			r.status = writable[i][n-1:]
		}
	}
	if r.status == nil {
		return verdictMalformed, 0
	}
	r.room = total(writable) - 1
	r.kind = math.MaxUint32 // until the header is read: no type
	var header [headerSize]byte
	if gather(header[:], readable) < headerSize {
		return verdictAnswer, statusIOError
	}
	r.kind = binary.LittleEndian.Uint32(header[0:])
	sector := binary.LittleEndian.Uint64(header[8:])
	in, out := r.room, total(readable)-headerSize

	switch r.kind {
	case typeIn:
		if out != 0 {
			return verdictAnswer, statusIOError
		}
		r.appendBufs(writable, 0, in)
		return r.locate(g, sector, in)
	case typeOut:
		if g.readOnly || in != 0 {
			return verdictAnswer, statusIOError
		}
		r.appendBufs(readable, headerSize, out)
		return r.locate(g, sector, out)
	case typeFlush:
		if in != 0 || out != 0 {
			return verdictAnswer, statusIOError
		}
		return verdictRun, statusOK
	case typeGetID:
		if out != 0 || in < idSize {
			return verdictAnswer, statusIOError
		}
		r.appendBufs(writable, 0, idSize)
		return verdictRun, statusOK
	case typeDiscard, typeWriteZeroes:
		return r.parseSegments(g, readable, in, out)
	}
	return verdictAnswer, statusUnsupported
}

// locate checks n bytes at sector against the disk: whole sectors, inside it, without overflow.
func (r *request) locate(g geometry, sector, n uint64) (verdict, byte) {
	if n%sectorSize != 0 || sector > g.sectors || n/sectorSize > g.sectors-sector {
		return verdictAnswer, statusIOError
	}
	r.offset = int64(sector * sectorSize)
	return verdictRun, statusOK
}

// parseSegments reads the segments of a discard or write-zeroes request. All are judged before any is executed.
func (r *request) parseSegments(g geometry, readable [][]byte, in, out uint64) (verdict, byte) {
	if g.readOnly {
		return verdictAnswer, statusIOError
	}
	want := uint64(featureDiscard)
	if r.kind == typeWriteZeroes {
		want = featureWriteZeroes
	}
	if g.features&want == 0 {
		return verdictAnswer, statusUnsupported
	}
	if in != 0 || out == 0 || out%segmentSize != 0 || out > maxSegments*segmentSize {
		return verdictAnswer, statusIOError
	}
	var raw [headerSize + maxSegments*segmentSize]byte
	n := gather(raw[:headerSize+out], readable)
	for b := raw[headerSize:n]; len(b) >= segmentSize; b = b[segmentSize:] {
		sector := binary.LittleEndian.Uint64(b[0:])
		sectors := uint64(binary.LittleEndian.Uint32(b[8:]))
		flags := binary.LittleEndian.Uint32(b[12:])
		if flags&^segmentUnmap != 0 || (r.kind == typeDiscard && flags != 0) {
			return verdictAnswer, statusUnsupported // virtio 1.2 §5.2.6.2
		}
		if sectors > maxSegmentSectors || sector > g.sectors || sectors > g.sectors-sector {
			return verdictAnswer, statusIOError
		}
		r.segments[r.count] = segment{int64(sector * sectorSize), int64(sectors * sectorSize), flags&segmentUnmap != 0}
		r.count++
	}
	return verdictRun, statusOK
}

// appendBufs makes n bytes of bufs, from the one at skip, the data of the request.
func (r *request) appendBufs(bufs [][]byte, skip, n uint64) {
	r.left = n
	for _, b := range bufs {
		if n == 0 {
			return
		}
		if skip >= uint64(len(b)) {
			skip -= uint64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		if uint64(len(b)) > n {
			b = b[:n]
		}
		n -= uint64(len(b))
		r.bufs = append(r.bufs, b)
	}
}

// advance takes the first n bytes off the data: they are done.
func (r *request) advance(n uint64) {
	r.done += n
	r.left -= n
	r.offset += int64(n)
	i := 0
	for n > 0 {
		if n < uint64(len(r.bufs[i])) {
			r.bufs[i] = r.bufs[i][n:]
			break
		}
		n -= uint64(len(r.bufs[i]))
		i++
	}
	if i > 0 {
		// Move the rest down instead of cutting the front off: the capacity is wanted again.
		r.bufs = r.bufs[:copy(r.bufs, r.bufs[i:])]
	}
}

// finish writes the status byte and returns the number of bytes to report in the used ring: those known to be
// written, from the front, without a gap. On success that is all of them; after a failed read the status is behind
// a gap and does not count (virtio 1.2 §2.7.8.2; the device may write more than it reports).
func (r *request) finish(status byte) uint32 {
	r.status[0] = status
	front := uint64(0)
	if r.kind == typeIn || r.kind == typeGetID {
		front = r.done
	}
	if front == r.room {
		front++
	}
	return uint32(min(front, math.MaxUint32))
}

// gather copies from bufs into p and returns the bytes copied.
func gather(p []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if n == len(p) {
			break
		}
		n += copy(p[n:], b)
	}
	return n
}

// total is the length of all bufs. The queue has checked that it fits guest memory.
func total(bufs [][]byte) uint64 {
	n := uint64(0)
	for _, b := range bufs {
		n += uint64(len(b))
	}
	return n
}
