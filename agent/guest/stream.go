package guest

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// copyOutput passes output on, each stream in a goroutine. The pipes hold what the host does not take, and the
// process waits: nothing is buffered here.
func (p *process) copyOutput() {
	for _, o := range p.outputs {
		p.copying.Go(func() {
			if !p.copy(o) {
				p.abandon()
			}
		})
	}
}

// copy passes one stream on to its end, and reports whether the host took it.
func (p *process) copy(o output) bool {
	buf := make([]byte, agent.MaxStream)
	for {
		n, err := o.file.Read(buf)
		if n > 0 && p.link.Send(o.frame, buf[:n]) != nil {
			return false
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return p.copyRest(o, buf)
		}
		if err != nil {
			return true
		}
	}
}

// maxRest is the most that a pipe holds, in bytes, of an unprivileged user.
const maxRest = 1 << 20

// copyRest passes on what a stream holds without waiting for more: when its time is over, a host that was slow
// to take the output still gets all that was written in time.
func (p *process) copyRest(o output, buf []byte) bool {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return true
	}
	for total := 0; total < maxRest; {
		n := 0
		err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) // it does not block
		if err != nil || n <= 0 {
			return true
		}
		if p.link.Send(o.frame, buf[:n]) != nil {
			return false
		}
		total += n
	}
	return true
}

// drain waits for the end of the output, that long, and for the host to take it, for ever.
func (p *process) drain(limit time.Duration) {
	over := time.AfterFunc(limit, func() {
		for _, o := range p.outputs {
			o.file.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer over.Stop()
	p.copying.Wait()
}

// listen takes what the host sends to the process on a connection of that age. When the host goes away, so does the process.
func (p *process) listen(r *agent.Reader, age uint64) {
	for {
		t, payload, err := r.Next()
		if err != nil {
			if !p.link.lost(age) {
				p.abandon()
			}
			return
		}
		switch t {
		case agent.FrameStdin:
			if !p.feed(payload) {
				p.abandon()
				return
			}
		case agent.FrameEOF:
			if p.tty != nil {
				p.feed([]byte{4}) // end of transmission, as a user would type it
			} else if p.stdin != nil {
				p.stdin.Close()
			}
		}
	}
}

// lookLimit is how long a process that does not read its input can keep us from noticing that the host is gone.
const lookLimit = time.Second

// feed gives input to the process and reports whether the host is still there.
func (p *process) feed(input []byte) bool {
	for p.stdin != nil && len(input) > 0 {
		p.stdin.SetWriteDeadline(time.Now().Add(lookLimit))
		n, err := p.stdin.Write(input)
		input = input[n:]
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if p.link.hostGone() {
				return false
			}
		case err != nil:
			if p.tty == nil {
				p.stdin.Close() // nobody reads it; later bytes fail at once and are dropped
			}
			return true
		}
	}
	return true
}
