package pmem

import "encoding/binary"

// requestFlush is VIRTIO_PMEM_REQ_TYPE_FLUSH, the only request there is, virtio 1.2 §5.19.6.
const requestFlush = 0

// Answers, virtio 1.2 §5.19.6.1: 0 is success, anything else a failure.
const (
	answerOK    uint32 = 0
	answerError uint32 = 0xffff_ffff // -1
)

const (
	requestSize = 4 // le32 type
	answerSize  = 4 // le32 ret
)

// parse reads the type of a request out of guest memory, once. It is false when the request is too short.
func parse(readable [][]byte) (kind uint32, ok bool) {
	var raw [requestSize]byte
	n := 0
	for _, b := range readable {
		if n == len(raw) {
			break
		}
		n += copy(raw[n:], b)
	}
	return binary.LittleEndian.Uint32(raw[:]), n == len(raw)
}

// handle answers one request and returns the bytes written; ok is false when there was no room for an answer.
// The file behind the device is read-only, so there is never anything to flush.
func handle(readable, writable [][]byte) (written uint32, ok bool) {
	answer := answerError
	if kind, complete := parse(readable); complete && kind == requestFlush {
		answer = answerOK
	}
	room := 0
	for _, b := range writable {
		if room += len(b); room >= answerSize {
			break
		}
	}
	if room < answerSize {
		return 0, false
	}
	var raw [answerSize]byte
	binary.LittleEndian.PutUint32(raw[:], answer)
	left := raw[:]
	for _, b := range writable {
		left = left[copy(b, left):]
	}
	return answerSize, answer == answerOK
}
