package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// FrameType says what a frame holds.
type FrameType uint8

// The frames of a connection. Who sends them is in parentheses.
const (
	FrameHello   FrameType = iota + 1 // (guest) Hello, first on the control connection
	FrameSetup                        // (host) Setup, its answer
	FrameReady                        // (guest) Failure with an empty Error, or why the guest is not ready
	FrameRequest                      // (host) Request, first on a request connection
	FrameStarted                      // (guest) Started: the process runs
	FrameFailure                      // (guest) Failure: the request was not carried out
	FrameStdin                        // (host) bytes
	FrameEOF                          // (either) end of standard input, or of a tar stream; empty
	FrameStdout                       // (guest) bytes
	FrameStderr                       // (guest) bytes
	FrameExit                         // (guest) Exit, the last frame of a process
	FrameData                         // (either) bytes of a tar stream; (host) bytes of a program
	FrameDone                         // (guest) the request was carried out; Stats or empty
	frameLimit
)

// Bounds of a frame's payload in bytes.
const (
	MaxStream  = 32 << 10 // what senders put into a frame of bytes
	MaxMessage = 64 << 10 // what receivers accept, except
	MaxPayload = 1 << 20  // for a Request, which may have a long command line
	headerSize = 5        // type, little-endian uint32 length
)

// limit is the longest payload of a frame of type t.
func (t FrameType) limit() int {
	if t == FrameRequest {
		return MaxPayload
	}
	return MaxMessage
}

// ErrFrame is matched by every error about bytes that are no frame. The connection is then of no more use.
var ErrFrame = errors.New("malformed frame")

// Writer sends frames. Any goroutine may call it; each frame goes out in one piece.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter makes a Writer over a stream.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Send sends one frame of bytes.
func (w *Writer) Send(t FrameType, payload []byte) error {
	if len(payload) > t.limit() {
		return fmt.Errorf("%w: %d bytes to send, at most %d", ErrFrame, len(payload), t.limit())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(binary.LittleEndian.AppendUint32(append(w.buf[:0], byte(t)), uint32(len(payload))), payload...)
	_, err := w.w.Write(w.buf)
	return err
}

// SendJSON sends one frame that holds v.
func (w *Writer) SendJSON(t FrameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return w.Send(t, b)
}

// Stream returns an io.Writer whose bytes become frames of that type.
func (w *Writer) Stream(t FrameType) io.Writer { return stream{w, t} }

type stream struct {
	w *Writer
	t FrameType
}

func (s stream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxStream)
		if err := s.w.Send(s.t, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Reader receives frames. It belongs to one goroutine.
type Reader struct {
	r   io.Reader
	buf []byte
}

// NewReader makes a Reader over a stream.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame. The payload is good until the next call. The error is io.EOF when the stream
// ends between frames, io.ErrUnexpectedEOF inside one.
func (r *Reader) Next() (FrameType, []byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return 0, nil, err
	}
	t, n := FrameType(head[0]), binary.LittleEndian.Uint32(head[1:])
	if t == 0 || t >= frameLimit || uint64(n) > uint64(t.limit()) {
		return 0, nil, fmt.Errorf("%w: type %d, %d bytes", ErrFrame, t, n)
	}
	if int(n) > cap(r.buf) {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, r.buf, nil
}

// Expect receives one frame, which must be of type t, into v. A FrameFailure in its place is returned as a
// *Failure.
func (r *Reader) Expect(t FrameType, v any) error {
	got, payload, err := r.Next()
	switch {
	case err != nil:
		return err
	case got == FrameFailure && t != FrameFailure:
		return failure(payload)
	case got != t:
		return fmt.Errorf("%w: type %d, want %d", ErrFrame, got, t)
	case v == nil:
		return nil
	}
	return decode(payload, v)
}

// decode reads a frame's JSON.
func decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

// failure reads a FrameFailure.
func failure(payload []byte) error {
	f := new(Failure)
	if err := decode(payload, f); err != nil {
		return err
	}
	f.judge()
	return f
}
