package vsock_test

import (
	"encoding/binary"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spore/virtio"
	"spore/virtio/virtiotest"
	"spore/virtio/vsock"
	"spore/vmm/api"
)

const (
	rx, tx, event = 0, 1, 2
	cid           = 5
)

// echo is a supervisor that lets the guest connect to any port and sends back what comes.
func echo(broker *os.File) {
	defer broker.Close()
	p := make([]byte, api.BrokerMessageSize)
	for {
		n, err := broker.Read(p)
		if err != nil {
			return
		}
		m, err := api.ParseBrokerMessage(p[:n])
		if err != nil {
			return
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return
		}
		answer := api.BrokerMessage{Op: api.BrokerAccept, ID: m.ID}.AppendTo(nil)
		raw, err := broker.SyscallConn()
		if err != nil {
			return
		}
		raw.Write(func(fd uintptr) bool {
			err = unix.Sendmsg(int(fd), answer, unix.UnixRights(fds[1]), nil, unix.MSG_NOSIGNAL)
			return err != unix.EAGAIN
		})
		unix.Close(fds[1])
		f := os.NewFile(uintptr(fds[0]), "echo")
		go func() {
			defer f.Close()
			io.Copy(f, struct{ io.Reader }{f})
		}()
	}
}

func newDevice(t *testing.T) virtio.Device {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := vsock.New(vsock.Config{CID: cid, Broker: os.NewFile(uintptr(fds[0]), "broker")})
	if err != nil {
		t.Fatal(err)
	}
	go echo(os.NewFile(uintptr(fds[1]), "supervisor"))
	t.Cleanup(func() { dev.Close() })
	return dev
}

// packet is a header of the guest's to host port 7, from a port of this test's.
func packet(op uint16, port, length, flags uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, cid)
	b = le.AppendUint64(b, 2)
	b = le.AppendUint32(b, port)
	b = le.AppendUint32(b, 7)
	b = le.AppendUint32(b, length)
	b = le.AppendUint16(b, 1)
	b = le.AppendUint16(b, op)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint32(b, 1<<16) // buf_alloc
	return le.AppendUint32(b, 0)  // fwd_cnt
}

// use opens a connection to the host, sends and gets back a few bytes, and closes it.
func use(t *testing.T, d *virtiotest.Driver) {
	t.Helper()
	const port, text = 1025, "hello, host"
	d.Submit(event, virtiotest.Buffer{Len: 8}) // a restored device sends nothing before its event
	exchange := func(op uint16, flags uint32, payload string, want uint16) []byte {
		t.Helper()
		_, at := d.Submit(rx, virtiotest.Buffer{Len: 20}, virtiotest.Buffer{Len: 24}, virtiotest.Buffer{Len: 4096})
		buffers := []virtiotest.Buffer{{Data: packet(op, port, uint32(len(payload)), flags)}}
		if payload != "" {
			buffers = append(buffers, virtiotest.Buffer{Data: []byte(payload)})
		}
		d.Submit(tx, buffers...)
		d.WaitUsed(tx, 1)
		n := uint32(0)
		d.Await("packet", func() bool {
			for _, u := range d.Completed(event) {
				if u.Len > 0 { // handled: the buffer is posted again
					d.Submit(event, virtiotest.Buffer{Len: 8})
				}
			}
			for _, u := range d.Completed(rx) {
				n = max(n, u.Len) // one given back empty is none
			}
			return n > 0
		})
		if n < 44 {
			t.Fatalf("a packet of %d bytes", n)
		}
		head := append(d.Bytes(at[0], 20), d.Bytes(at[1], 24)...)
		if got := binary.LittleEndian.Uint16(head[30:]); got != want {
			t.Fatalf("operation %d, want %d", got, want)
		}
		return d.Bytes(at[2], int(n-44))
	}
	exchange(1, 0, "", 2)
	if got := exchange(5, 0, text, 5); string(got) != text {
		t.Fatalf("echo %q, want %q", got, text)
	}
	exchange(4, 3, "", 3)
}

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, virtiotest.Case{New: newDevice, Use: use, Eager: []int{tx}})
}
