package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Put copies the file or tree at src, on this machine, to dest in the guest, where it belongs to owner. Whether
// dest is a directory to copy into is decided there, as in Unpack.
func Put(ctx context.Context, dial Dial, src, dest string, owner Owner) error {
	conn, stop, err := request(ctx, dial, Request{Op: OpPut, Path: dest, UID: uint32(owner.UID), GID: uint32(owner.GID)})
	if err != nil {
		return err
	}
	defer stop()
	answer := make(chan error, 1)
	go func() { answer <- NewReader(conn).Expect(FrameDone, nil) }()
	w := NewWriter(conn)
	packErr := Pack(w.Stream(FrameData), src)
	if packErr == nil {
		packErr = w.Send(FrameEOF, nil)
	} else {
		conn.SetReadDeadline(time.Now().Add(time.Second)) // a refusal explains a broken stream; do not wait for more
	}
	err = <-answer
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	if packErr != nil {
		return lost(ctx, packErr)
	}
	return lost(ctx, err)
}

// Get copies the file or tree at src in the guest to dest on this machine, by the rules of Unpack.
func Get(ctx context.Context, dial Dial, src, dest string) error {
	conn, stop, err := request(ctx, dial, Request{Op: OpGet, Path: src})
	if err != nil {
		return err
	}
	defer stop()
	s := &received{r: NewReader(conn), conn: conn}
	if err := Unpack(s, dest, Owner{-1, -1}); err != nil {
		if s.err != nil {
			return lost(ctx, s.err)
		}
		return err
	}
	// What follows the archive's end is read, so that the agent's own word about it is heard.
	if _, err := io.Copy(io.Discard, s); err != nil {
		return lost(ctx, err)
	}
	return nil
}

// idleLimit is how long a copy may stand still.
const idleLimit = time.Minute

// received is the tar stream of an OpGet.
type received struct {
	r    *Reader
	conn net.Conn
	rest []byte
	done bool
	err  error
}

func (s *received) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.done {
			return 0, io.EOF
		}
		if s.err != nil {
			return 0, s.err
		}
		s.conn.SetReadDeadline(time.Now().Add(idleLimit))
		t, payload, err := s.r.Next()
		switch {
		case err != nil:
			s.err = err
		case t == FrameEOF:
			s.done = true
		case t == FrameData:
			s.rest = payload
		case t == FrameFailure:
			f := new(Failure)
			if s.err = decode(payload, f); s.err == nil {
				s.err = f
			}
		default:
			s.err = fmt.Errorf("%w: type %d in a tar stream", ErrFrame, t)
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
