package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// netlink is a socket of one of the kernel's netlink families (man 7 netlink). It belongs to one goroutine. The kernel works on what is
// sent before the send returns, so nothing here waits for long; a receive that would is an error.
type netlink struct {
	fd  int
	seq uint32
	buf []byte // of received messages
}

const (
	netlinkHeader   = 16
	netlinkBuffer   = 64 << 10
	netlinkReplies  = 1 << 14 // datagrams of one answer that are looked at
	netlinkPatience = 10      // seconds
)

var native = binary.NativeEndian

func openNetlink(family int) (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: netlinkPatience}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &netlink{fd: fd, buf: make([]byte, netlinkBuffer)}, nil
}

func (n *netlink) close() { unix.Close(n.fd) }

// order is one message of a batch: what it is for, and what it may fail with.
type order struct {
	what     string
	tolerate []unix.Errno
}

// batch is messages that are sent together. Each is begun by add, and what is appended after that is its body.
type batch struct {
	b      []byte
	start  int // of the last message
	orders []order
}

func (t *batch) add(what string, kind, flags uint16, body []byte, tolerate ...unix.Errno) {
	t.start = len(t.b)
	t.orders = append(t.orders, order{what, tolerate})
	t.b = native.AppendUint32(t.b, 0)
	t.b = native.AppendUint16(t.b, kind)
	t.b = native.AppendUint16(t.b, flags|unix.NLM_F_REQUEST)
	t.b = append(t.b, make([]byte, 8)...) // sequence number and port, see do
	t.b = append(t.b, body...)
	t.end()
}

// attr appends an attribute to the last message.
func (t *batch) attr(kind uint16, value []byte) {
	t.b = native.AppendUint16(t.b, uint16(4+len(value)))
	t.b = native.AppendUint16(t.b, kind)
	t.b = append(t.b, value...)
	t.end()
}

// end aligns the last message and writes down its length.
func (t *batch) end() {
	t.b = append(t.b, make([]byte, -len(t.b)&3)...)
	native.PutUint32(t.b[t.start:], uint32(len(t.b)-t.start))
}

// do sends the batch and waits until all is done. The kernel carries out each message whatever the others come to; the first that fails
// with what its order does not tolerate is the error. Only the last is acknowledged, so that the usual batch takes two system calls.
func (n *netlink) do(t *batch) error {
	if len(t.orders) == 0 {
		return nil
	}
	native.PutUint16(t.b[t.start+6:], native.Uint16(t.b[t.start+6:])|unix.NLM_F_ACK)
	first := n.seq + 1
	for at := 0; at < len(t.b); at += int(native.Uint32(t.b[at:])) {
		n.seq++
		native.PutUint32(t.b[at+8:], n.seq)
	}
	if err := n.send(t.b); err != nil {
		return err
	}
	var failed error
	err := n.receive(func(kind uint16, seq uint32, body []byte) bool {
		i := int(seq - first)
		if kind != unix.NLMSG_ERROR || len(body) < 4 || i < 0 || i >= len(t.orders) {
			return false
		}
		errno := unix.Errno(-int32(native.Uint32(body)))
		if errno != 0 && failed == nil && !slices.Contains(t.orders[i].tolerate, errno) {
			failed = fmt.Errorf("%s: %w", t.orders[i].what, errno)
		}
		return i == len(t.orders)-1
	})
	return errors.Join(failed, err)
}

// dump sends one request for a list, and calls each for every element.
func (n *netlink) dump(kind uint16, body []byte, each func(body []byte)) error {
	var t batch
	t.add("", kind, unix.NLM_F_DUMP, body)
	n.seq++
	native.PutUint32(t.b[8:], n.seq)
	if err := n.send(t.b); err != nil {
		return err
	}
	var failed error
	err := n.receive(func(kind uint16, seq uint32, body []byte) bool {
		switch {
		case seq != n.seq:
			return false
		case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
			if len(body) >= 4 && native.Uint32(body) != 0 {
				failed = unix.Errno(-int32(native.Uint32(body)))
			}
			return true
		}
		each(body)
		return false
	})
	return errors.Join(failed, err)
}

func (n *netlink) send(b []byte) error {
	err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	return os.NewSyscallError("sendto", err)
}

// receive takes messages until last returns true for one.
func (n *netlink) receive(last func(kind uint16, seq uint32, body []byte) bool) error {
	for range netlinkReplies {
		size, err := unix.Read(n.fd, n.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		for b := n.buf[:size]; len(b) >= netlinkHeader; {
			length := int(native.Uint32(b))
			if length < netlinkHeader || length > len(b) {
				return errors.New("read: a message of an impossible length")
			}
			if last(native.Uint16(b[4:]), native.Uint32(b[8:]), b[netlinkHeader:length]) {
				return nil
			}
			b = b[min(len(b), (length+3)&^3):]
		}
	}
	return errors.New("read: no end to the answer")
}

// attributes calls each for the attributes in b.
func attributes(b []byte, each func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		length := int(native.Uint16(b))
		if length < 4 || length > len(b) {
			return
		}
		each(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:length])
		b = b[min(len(b), (length+3)&^3):]
	}
}
