package session

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
)

// killRounds bounds how often the processes of a session are looked for.
const killRounds = 50

// handle acts on a client's frame. It never blocks on the process.
func (p *process) handle(f frame.Frame) error {
	switch f.Type {
	case frame.TypeStdin:
		return p.queue(f.Payload, false)
	case frame.TypeStdinEOF:
		return p.queue(nil, true)
	case frame.TypeSignal:
		if len(f.Payload) != 1 || f.Payload[0] == 0 || f.Payload[0] > 64 {
			return fmt.Errorf("signal: %w", frame.ErrFrame)
		}
		p.signal(syscall.Signal(f.Payload[0]))
	case frame.TypeResize:
		rows, cols, err := frame.ParseResize(f.Payload)
		if err != nil {
			return err
		}
		if p.tty {
			resize(p.stdin, rows, cols)
		}
	case frame.TypeClose:
		if len(f.Payload) != 1 || f.Payload[0] < 1 || f.Payload[0] > 2 {
			return fmt.Errorf("close: %w", frame.ErrFrame)
		}
		if out := p.outputs[f.Payload[0]]; out != nil && !p.tty {
			_ = out.Close()
		}
	default:
		return fmt.Errorf("unexpected type %d: %w", f.Type, frame.ErrFrame)
	}
	return nil
}

// queue takes bytes for stdin, and whether they are the last.
func (p *process) queue(b []byte, last bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inputEOF {
		return nil
	}
	p.unacked += len(b)
	if p.unacked > frame.StdinWindow {
		return fmt.Errorf("stdin beyond the window: %w", frame.ErrFrame)
	}
	p.pending = append(p.pending, b...)
	p.inputEOF = last
	select {
	case p.input <- struct{}{}:
	default:
	}
	return nil
}

// feed writes queued bytes to the process's stdin and acknowledges them. What
// the process does not want is thrown away, so that the client is not held up.
func (p *process) feed() {
	broken := false
	for {
		select {
		case <-p.input:
		case <-p.done:
			return
		}
		p.mu.Lock()
		b, last := p.pending, p.inputEOF
		p.pending = nil
		p.mu.Unlock()
		for len(b) > 0 {
			n := min(len(b), frame.MaxPayload)
			if !broken {
				_, err := p.stdin.Write(b[:n])
				broken = err != nil
			}
			b = b[n:]
			p.mu.Lock()
			p.unacked -= n
			p.mu.Unlock()
			_ = p.send(frame.TypeWindow, binary.LittleEndian.AppendUint32(nil, uint32(n)))
		}
		if last {
			p.endInput()
			return
		}
	}
}

// endInput passes the end of stdin on: a closed pipe, or the terminal's own
// end-of-file character.
func (p *process) endInput() {
	if p.tty {
		_, _ = p.stdin.Write([]byte{4})
		return
	}
	_ = p.stdin.Close()
}

// signal sends sig to the process group, unless the process is gone.
func (p *process) signal(sig syscall.Signal) {
	select {
	case <-p.exited:
	default:
		_ = unix.Kill(-p.cmd.Process.Pid, sig)
	}
}

// hangup ends the process because nobody listens any more: SIGHUP, and after
// grace SIGKILL for all that still belongs to its session.
func (p *process) hangup(grace time.Duration) {
	if grace > 0 {
		p.signal(syscall.SIGHUP)
		select {
		case <-p.exited:
		case <-time.After(grace):
		}
	}
	for range killRounds {
		if killSession(p.cmd.Process.Pid) == 0 {
			break
		}
		select {
		case <-p.exited:
		case <-time.After(10 * time.Millisecond):
		}
	}
	<-p.done
}

// killSession kills every process whose session is sid and returns how many.
func killSession(sid int) int {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read before an error still counts
	killed := 0
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// pid (comm) state ppid pgrp session …
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 4 || string(fields[0]) == "Z" || string(fields[3]) != strconv.Itoa(sid) {
			continue
		}
		if unix.Kill(pid, unix.SIGKILL) == nil {
			killed++
		}
	}
	return killed
}
