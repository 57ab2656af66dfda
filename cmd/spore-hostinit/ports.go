package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/session"
)

const (
	portPrefix   = "spore." // port names on the virtio-serial bus
	controlPort  = "spore.0"
	portPatience = 30 * time.Second
	hangupGrace  = time.Second
)

// serve serves every command port until one fails.
func serve(log *slog.Logger) error {
	names, err := findPorts()
	if err != nil {
		return err
	}
	h := &host{log: log, kept: kept{dir: "/run/spore-kept"}}
	ended := make(chan error, len(names))
	for device, name := range names {
		p, err := openPort(device)
		if err != nil {
			return err
		}
		s := session.Server{
			Port: p, Ready: h.configured.Load, Prepare: h.prepare, HangupGrace: hangupGrace, Log: log,
		}
		if name == controlPort {
			s.Configure, s.Sync = h.configure, unix.Sync
		}
		go func() { ended <- fmt.Errorf("port %s: %w", name, s.Serve()) }()
	}
	return <-ended
}

// findPorts waits for the ports and returns their names by device.
func findPorts() (map[string]string, error) {
	for end := time.Now().Add(portPatience); ; time.Sleep(10 * time.Millisecond) {
		names := make(map[string]string)
		control := false
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name") // only a bad pattern is an error
		for _, f := range files {
			b, err := os.ReadFile(f)
			if name := strings.TrimSpace(string(b)); err == nil && strings.HasPrefix(name, portPrefix) {
				names[filepath.Join("/dev", filepath.Base(filepath.Dir(f)))] = name
				control = control || name == controlPort
			}
		}
		// The control port is the last on the bus: with it, all are there.
		if control {
			return names, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("find ports: no %s on the bus", controlPort)
		}
	}
}

// port is a virtio-serial port. The device reads as empty while nobody is
// connected at the other end, and polls as hung up. Connections and data come
// through different queues: data may arrive before the word that there is a
// client, and the old client's end after the new one's first bytes. So only a
// port that stays hung up for a while is taken to be disconnected.
type port struct {
	file      *os.File
	raw       syscall.RawConn
	connected bool // a client was there at the last read
}

// hangupPatience is how long a port must be hung up to count as disconnected.
const hangupPatience = 100 * time.Millisecond

func openPort(device string) (*port, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", device, err)
	}
	f := os.NewFile(uintptr(fd), device)
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", device, err)
	}
	return &port{file: f, raw: raw}, nil
}

// Read implements session.Port.
func (p *port) Read(b []byte) (int, error) {
	for {
		var n int
		var err error
		waitErr := p.raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), b)
			if n == 0 && err == nil {
				return p.connected // else wait until somebody comes
			}
			return err != unix.EAGAIN && err != unix.EINTR
		})
		if waitErr != nil {
			return 0, waitErr
		}
		if err != nil {
			return 0, err
		}
		if n > 0 && p.connected {
			return n, nil
		}
		stays := p.awaitClient()
		switch {
		case n > 0 && stays:
			p.connected = true
			return n, nil
		case !stays && p.connected:
			p.connected = false
			return 0, session.ErrDisconnected
		}
		// Bytes of a client that has gone already, or a client that came back.
	}
}

// Write implements session.Port.
func (p *port) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		var n int
		var err error
		if err := p.file.SetWriteDeadline(time.Now().Add(hangupPatience)); err != nil {
			return done, err
		}
		waitErr := p.raw.Write(func(fd uintptr) bool {
			n, err = unix.Write(int(fd), b[done:])
			return err != unix.EAGAIN && err != unix.EINTR
		})
		switch {
		case errors.Is(waitErr, os.ErrDeadlineExceeded):
			if !p.awaitClient() {
				return done, session.ErrDisconnected
			}
		case waitErr != nil:
			return done, waitErr
		case err != nil:
			return done, err
		default:
			done += n
		}
	}
	return len(b), nil
}

// awaitClient says whether a client is connected, giving it time to be.
func (p *port) awaitClient() bool {
	for end, nap := time.Now().Add(hangupPatience), time.Millisecond; ; nap *= 2 {
		gone := false
		_ = p.raw.Control(func(fd uintptr) { gone = hungUp(int(fd)) }) // never closed
		if !gone {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(nap)
	}
}

func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
}
