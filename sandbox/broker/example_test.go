package broker_test

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"spore/sandbox/broker"
)

// Example dials a port of a guest. In place of a VMM and its guest there is a function that says one thing.
func Example() {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	go guestSays("hello from port 7\n", fds[1]) // spore-vmm inherits this end, as api.Vsock.Broker
	b := broker.New(os.NewFile(uintptr(fds[0]), "broker"))
	defer b.Close()

	c, err := b.Dial(context.Background(), 7)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	io.Copy(os.Stdout, c)
	// Output: hello from port 7
}

// guestSays takes one connection and writes to it.
func guestSays(text string, fd int) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 16), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) == 0 {
		return
	}
	conns, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(conns[0]), "connection")
	defer f.Close()
	f.WriteString(text)
}
