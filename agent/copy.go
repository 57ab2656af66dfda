package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
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
	conn.SetDeadline(time.Time{})
	out := &outgoing{conn: conn}
	answer := make(chan error, 1)
	go func() {
		err := NewReader(conn).Expect(FrameDone, nil)
		out.end() // an early answer is a refusal: the rest of the stream is of no use
		answer <- err
	}()
	w := NewWriter(out)
	packErr := Pack(w.Stream(FrameData), src)
	packed := packErr == nil
	if packed {
		packErr = w.Send(FrameEOF, nil)
	}
	if packErr == nil {
		conn.SetReadDeadline(time.Now().Add(idleLimit))
	} else {
		conn.SetReadDeadline(time.Now().Add(refusalLimit))
	}
	err = <-answer
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	if err == nil && packed {
		return nil // the guest has all of it, and answered before it was told that this was all
	}
	if packErr != nil {
		return lost(ctx, packErr)
	}
	return lost(ctx, err)
}

// refusalLimit is how long after a broken stream the guest's word about it may take to arrive.
const refusalLimit = time.Second

// outgoing writes to a connection that may stand still no longer than idleLimit, until end.
type outgoing struct {
	conn  net.Conn
	ended atomic.Bool
}

func (o *outgoing) Write(p []byte) (int, error) {
	o.conn.SetWriteDeadline(time.Now().Add(idleLimit))
	if o.ended.Load() {
		return 0, io.ErrClosedPipe
	}
	return o.conn.Write(p)
}

// end makes this and every later Write return. Whichever order it and Write come in, one sees the other.
func (o *outgoing) end() {
	o.ended.Store(true)
	o.conn.SetWriteDeadline(time.Unix(1, 0))
}

// Get copies the file or tree at src in the guest to dest on this machine, by the rules of Unpack.
func Get(ctx context.Context, dial Dial, src, dest string) error {
	conn, stop, err := request(ctx, dial, Request{Op: OpGet, Path: src})
	if err != nil {
		return err
	}
	defer stop()
	s := &received{r: NewReader(conn), conn: conn}
	if err := Unpack(s, dest, Rules{}); err != nil {
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
			s.err = failure(payload)
		default:
			s.err = fmt.Errorf("%w: type %d in a tar stream", ErrFrame, t)
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
