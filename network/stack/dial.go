package stack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is a connected datagram socket: *net.UDPConn and *os.File are some.
type Socket interface {
	syscall.Conn
	Close() error
}

// Dialer makes connections to destinations.
type Dialer interface {
	TCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error)
	UDP(to netip.AddrPort) (Socket, error)
	// Ping returns a socket for echo requests: it takes and gives ICMP messages, whose identifiers are the kernel's.
	Ping(to netip.Addr) (Socket, error)
}

// Direct dials from this process's own network namespace.
type Direct struct{}

// keepAlive finds out that a destination is gone when neither side says anything: the guest's own probes end here.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 30 * time.Second, Count: 4}

// TCP implements Dialer.
func (Direct) TCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// UDP implements Dialer.
func (Direct) UDP(to netip.AddrPort) (Socket, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}

// Ping implements Dialer with the kernel's ping sockets, which need no privilege but a group in net.ipv4.ping_group_range.
func (Direct) Ping(to netip.Addr) (Socket, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{}
	if to.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("ping socket: %w", os.NewSyscallError("socket", err))
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ping socket: %w", os.NewSyscallError("connect", err))
	}
	return os.NewFile(uintptr(fd), "ping"), nil
}
