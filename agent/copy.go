package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	packed := false
	err, packErr := exchange(conn, NewReader(conn), FrameDone, nil, func(w *Writer) error {
		if err := Pack(w.Stream(FrameData), src); err != nil {
			return err
		}
		packed = true
		return w.Send(FrameEOF, nil)
	})
	var f *Failure
	switch {
	case errors.As(err, &f):
		return f
	case err == nil && packed:
		return nil // the guest has all of it, and answered before it was told that this was all
	case packErr != nil:
		return lost(ctx, packErr)
	}
	return lost(ctx, err)
}

// exchange sends what belongs to a request, and receives the answer to all of it, of type t, into v. Nothing waits between the two:
// an answer that comes early is a refusal, and ends the sending. The connection's deadlines are not what they were.
func exchange(conn Conn, r *Reader, t FrameType, v any, send func(*Writer) error) (answered, sent error) {
	conn.SetDeadline(time.Time{})
	out := &outgoing{conn: conn}
	answer := make(chan error, 1)
	go func() {
		err := r.Expect(t, v)
		out.end() // the rest of the stream is of no use
		answer <- err
	}()
	sent = send(NewWriter(out))
	if sent == nil {
		conn.SetReadDeadline(time.Now().Add(idleLimit))
	} else {
		conn.SetReadDeadline(time.Now().Add(refusalLimit))
	}
	return <-answer, sent
}

// startWith awaits the start of a process whose program is sent along.
func startWith(conn Conn, r *Reader, started *Started, program io.Reader, size int64) error {
	err, sendErr := exchange(conn, r, FrameStarted, started, func(w *Writer) error { return sendProgram(w, program, size) })
	var f *Failure
	if sendErr != nil && !errors.As(err, &f) {
		return sendErr
	}
	return err
}

// sendProgram sends exactly the bytes that the request has announced.
func sendProgram(w *Writer, program io.Reader, size int64) error {
	n, err := io.CopyBuffer(w.Stream(FrameData), onlyReader{io.LimitReader(program, size)}, make([]byte, min(size, MaxStream)))
	if err == nil && n < size {
		return &Failure{Text: fmt.Sprintf("the program became shorter while it was read: %d bytes of %d", n, size)}
	}
	return err
}

// refusalLimit is how long after a broken stream the guest's word about it may take to arrive.
const refusalLimit = time.Second

// outgoing writes to a connection that may stand still no longer than idleLimit, until end.
type outgoing struct {
	conn  Conn
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
	conn Conn
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
