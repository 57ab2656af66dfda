// Package frame is the protocol between a client of the emulated host and the
// host's init process, spoken over one virtio-serial port per session.
//
// A port is a byte stream without connections of its own: when a client goes
// away in the middle of a frame, the next client's bytes arrive behind the
// fragment, and what the guest had under way may reach the next client. The
// protocol is built so that both ends find the start of a session again:
//
//   - A client opens with [Padding], zero bytes as many as a client's frame may
//     have, and a hello. A fragment of an older frame is completed by the padding and
//     thrown away because its trailer is wrong; zero bytes between frames mean
//     nothing.
//   - The hello carries a random [Nonce]. The guest answers with the same one,
//     and the client throws away everything until it has seen the answer.
//   - Every frame ends in a tag derived from the nonce.
//
// Layout, little endian: type u8 (not zero), 0xA5 u8, length u16, payload, tag
// u32 (not zero).
package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type says what a frame carries. The zero value is padding, never a frame.
type Type uint8

// Frame types. C marks frames a client sends, G those the guest sends.
const (
	TypeHello     Type = 1  // C, G: magic and nonce
	TypePart      Type = 2  // C: a piece of a request body, before Start or Configure
	TypeStart     Type = 3  // C: last piece of a JSON Start
	TypeConfigure Type = 4  // C: last piece of a JSON Configuration
	TypeSync      Type = 5  // C: write back file systems; G: done
	TypeStdin     Type = 6  // C: bytes for the process
	TypeStdinEOF  Type = 7  // C: end of standard input
	TypeSignal    Type = 8  // C: u8 signal number for the process group
	TypeResize    Type = 9  // C: u16 rows, u16 columns
	TypeClose     Type = 10 // C: u8 stream (1 or 2) the client reads no more
	TypeStdout    Type = 11 // G: bytes
	TypeStderr    Type = 12 // G: bytes
	TypeWindow    Type = 13 // G: u32 bytes of stdin that were consumed
	TypeStarted   Type = 14 // G: u32 process id, or nothing after Configure
	TypeExit      Type = 15 // G: u8 kind (0 code, 1 signal), u8 value; ends the session
	TypeError     Type = 16 // G: text; ends the session
	typeEnd       Type = 17
)

const (
	// MaxPayload is the longest payload. A whole frame fits in one write to a
	// virtio-serial port, which Linux cuts at 32 KiB.
	MaxPayload = 32<<10 - headerSize - trailerSize
	// MaxClientPayload is the longest payload a client sends. It is shorter than
	// MaxPayload to keep Padding short, which every session begins with.
	MaxClientPayload = 8<<10 - headerSize - trailerSize
	// MaxBody bounds a request body collected from TypePart frames.
	MaxBody = 4 << 20
	// StdinWindow is how many bytes of stdin a client may have sent beyond what
	// TypeWindow frames acknowledged.
	StdinWindow = 256 << 10

	headerSize  = 4
	trailerSize = 4
	marker      = 0xA5
	helloTag    = 0x6F6C6548
)

// MaxFrame is the size of the longest frame on the wire.
const MaxFrame = headerSize + MaxPayload + trailerSize

const helloMagic = "SporeHs1"

// helloSize is the size of a hello on the wire.
const helloSize = headerSize + len(helloMagic) + len(Nonce{}) + trailerSize

// Nonce names a session. Drawn at random by the client.
type Nonce [16]byte

// Tag is the trailer of the session's frames: part of the nonce, never zero.
func (n Nonce) Tag() uint32 { return binary.LittleEndian.Uint32(n[:]) | 1 }

// ErrFrame is a frame that breaks the protocol; the session is over.
var ErrFrame = errors.New("malformed frame")

// Frame is one frame as read. Payload is valid until the next read.
type Frame struct {
	Type    Type
	Payload []byte
}

// Append adds a frame to dst. It panics if payload is longer than MaxPayload.
func Append(dst []byte, tag uint32, t Type, payload []byte) []byte {
	if len(payload) > MaxPayload {
		panic(fmt.Sprintf("bug: frame payload of %d bytes", len(payload)))
	}
	dst = append(dst, byte(t), marker)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(payload)))
	dst = append(dst, payload...)
	return binary.LittleEndian.AppendUint32(dst, tag)
}

// Padding is what a client sends before its hello: as much as the longest
// frame a client sends.
func Padding() []byte { return make([]byte, headerSize+MaxClientPayload+trailerSize) }

// AppendHello adds the hello for a session named n.
func AppendHello(dst []byte, n Nonce) []byte {
	return Append(dst, helloTag, TypeHello, append([]byte(helloMagic), n[:]...))
}

// ParseHello takes the nonce from a hello's payload.
func ParseHello(payload []byte) (Nonce, error) {
	var n Nonce
	if len(payload) != len(helloMagic)+len(n) || string(payload[:len(helloMagic)]) != helloMagic {
		return n, fmt.Errorf("read hello: %w", ErrFrame)
	}
	copy(n[:], payload[len(helloMagic):])
	return n, nil
}

// Reader takes frames from a stream. Not for concurrent use.
type Reader struct {
	src  io.Reader
	buf  []byte // MaxFrame + some, allocated once
	r, w int
	tag  uint32
}

// NewReader returns a Reader that accepts no frames but hellos until SetTag.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, 2*MaxFrame)}
}

// SetTag sets the tag frames must carry. Hellos are accepted besides.
func (r *Reader) SetTag(tag uint32) { r.tag = tag }

// Reset forgets buffered bytes and the tag.
func (r *Reader) Reset() { r.r, r.w, r.tag = 0, 0, 0 }

// fill reads more bytes behind those buffered.
func (r *Reader) fill() error {
	if r.r > 0 {
		copy(r.buf, r.buf[r.r:r.w])
		r.w -= r.r
		r.r = 0
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// Next returns the next frame. Zero bytes before it are skipped. A frame whose
// trailer does not match, an unknown type or a bad length gives ErrFrame; the
// reader is then between frames again only after Hunt. Errors of the source
// are returned as they are.
func (r *Reader) Next() (Frame, error) {
	for {
		for r.r < r.w && r.buf[r.r] == 0 {
			r.r++
		}
		b := r.buf[r.r:r.w]
		if len(b) < headerSize {
			if err := r.fill(); err != nil {
				return Frame{}, err
			}
			continue
		}
		t, n := Type(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
		if t >= typeEnd || b[1] != marker || n > MaxPayload {
			return Frame{}, fmt.Errorf("header %x: %w", b[:headerSize], ErrFrame)
		}
		if len(b) < headerSize+n+trailerSize {
			if err := r.fill(); err != nil {
				return Frame{}, err
			}
			continue
		}
		tag := binary.LittleEndian.Uint32(b[headerSize+n:])
		r.r += headerSize + n + trailerSize
		want := r.tag
		if t == TypeHello {
			want = helloTag
		}
		if tag != want || tag == 0 {
			return Frame{}, fmt.Errorf("trailer of type %d frame: %w", t, ErrFrame)
		}
		return Frame{Type: t, Payload: b[headerSize : headerSize+n : headerSize+n]}, nil
	}
}

// Hunt throws bytes away until a whole hello has gone by and returns its
// nonce. With want not nil, only that very hello counts.
func (r *Reader) Hunt(want *Nonce) (Nonce, error) {
	start := []byte{byte(TypeHello), marker, byte(len(helloMagic) + len(Nonce{})), 0}
	start = append(start, helloMagic...)
	if want != nil {
		start = append(start, want[:]...)
	}
	for {
		i := bytes.Index(r.buf[r.r:r.w], start)
		switch {
		case i < 0:
			// Keep only what may be the beginning of a hello.
			r.r = max(r.r, r.w-helloSize)
		case r.w-r.r-i >= helloSize:
			hello := r.buf[r.r+i:][:helloSize]
			if binary.LittleEndian.Uint32(hello[helloSize-trailerSize:]) == helloTag {
				r.r += i + helloSize
				return ParseHello(hello[headerSize : helloSize-trailerSize])
			}
			r.r += i + 1
			continue
		default:
			r.r += i
		}
		if err := r.fill(); err != nil {
			return Nonce{}, err
		}
	}
}
