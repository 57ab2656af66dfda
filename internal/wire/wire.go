// Package wire frames values on a byte stream: a little-endian uint32 length, then that many bytes, which are JSON or, between
// processes of one build, the plain form of WriteValue.
// Both ends bound the length, so a peer cannot make the other allocate by its own number.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the largest frame in bytes that Read accepts and Write sends.
const MaxFrame = 1 << 20

// ErrTooLong says that a frame is longer than MaxFrame.
var ErrTooLong = errors.New("frame longer than 1 MiB")

// Write sends v as one frame, in a single call of w.Write.
func Write(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return ErrTooLong
	}
	frame := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// Read receives one frame into v. It returns io.EOF when the stream ends between frames and
// io.ErrUnexpectedEOF when it ends inside one. Fields that v does not know are ignored.
func Read(r io.Reader, v any) error {
	body, err := readFrame(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, ErrTooLong
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body, nil
}
