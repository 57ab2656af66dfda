// Package nettest has the other side of a network device's descriptor, for tests: a tap without a kernel's network behind it.
package nettest

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// HeaderSize is the length of struct virtio_net_hdr, which every frame is behind.
const HeaderSize = 12

// limit ends a wait for a frame. It only has to end.
const limit = 2 * time.Minute

// Tap is the other side of a device's descriptor. It belongs to one goroutine for each direction.
type Tap struct {
	file *os.File
	t    testing.TB
	buf  [HeaderSize + 1<<17]byte
}

// New makes a socket pair and returns one end, for the device, and the other. Both are closed when the test ends, if not before.
func New(t testing.TB) (*os.File, *Tap) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 208<<10); err != nil {
			t.Fatal(err)
		}
	}
	device, ours := os.NewFile(uintptr(fds[0]), "device"), os.NewFile(uintptr(fds[1]), "tap")
	t.Cleanup(func() {
		device.Close()
		ours.Close()
	})
	return device, &Tap{file: ours, t: t}
}

// Send sends the device a frame behind a header, waiting for room.
func (p *Tap) Send(header, frame []byte) {
	p.t.Helper()
	p.file.SetWriteDeadline(time.Now().Add(limit))
	if len(frame) > 0 {
		header = append(header[:len(header):len(header)], frame...)
	}
	if _, err := p.file.Write(header); err != nil {
		p.t.Fatalf("send a frame: %v", err)
	}
}

// TrySend sends the device a packet as it is, and reports whether there was room for it.
func (p *Tap) TrySend(packet []byte) bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), packet)
		return true
	})
	if err != nil && err != unix.EAGAIN {
		p.t.Fatalf("send a packet: %v", err)
	}
	return err == nil
}

// Receive waits for the next frame of the device's. Both slices are good until the next call.
func (p *Tap) Receive() (header, frame []byte) {
	p.t.Helper()
	p.file.SetReadDeadline(time.Now().Add(limit))
	n, err := p.file.Read(p.buf[:])
	header, frame, _ = p.split(n, err)
	return header, frame
}

// Next returns the next frame if one has been sent.
func (p *Tap) Next() (header, frame []byte, ok bool) {
	p.t.Helper()
	raw, err := p.file.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	n := 0
	raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), p.buf[:]) })
	if err == unix.EAGAIN {
		return nil, nil, false
	}
	return p.split(n, err)
}

func (p *Tap) split(n int, err error) (header, frame []byte, ok bool) {
	p.t.Helper()
	if err != nil || n < HeaderSize {
		p.t.Fatalf("receive a frame: %d bytes, %v", n, err)
	}
	return p.buf[:HeaderSize], p.buf[HeaderSize:n], true
}

// Close is what the device sees as the end of its network.
func (p *Tap) Close() { p.file.Close() }
