package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// QEMU's user network answers at fixed addresses: it is the way out, and knows the outer machine's name servers.
var (
	outerAddress = netip.MustParsePrefix("10.0.2.15/24")
	outerGateway = netip.MustParseAddr("10.0.2.2")
)

// resolvConf names QEMU's name server: those of the outer machine may listen on its loopback only.
const resolvConf = "nameserver 10.0.2.3\n"

// outerInterface is the only one that is there at the start beside lo.
const outerInterface = "eth0"

// connectOut gives the machine its way out.
func connectOut() error {
	if _, err := os.Stat(filepath.Join("/sys/class/net", outerInterface)); err != nil {
		return err
	}
	if err := setAddress(outerInterface, outerAddress); err != nil {
		return err
	}
	if err := interfaceUp(outerInterface); err != nil {
		return err
	}
	return addDefaultRoute(outerGateway)
}

// setAddress is SIOCSIFADDR and SIOCSIFNETMASK, netdevice(7).
func setAddress(name string, p netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set address of %s: %w", name, err)
	}
	defer unix.Close(fd)
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	for _, s := range []struct {
		request uint
		address []byte
	}{{unix.SIOCSIFADDR, p.Addr().AsSlice()}, {unix.SIOCSIFNETMASK, mask}} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
		if err := r.SetInet4Addr(s.address); err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
		if err := unix.IoctlIfreq(fd, s.request, r); err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
	}
	return nil
}

// interfaceUp brings an interface up.
func interfaceUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// addDefaultRoute sends one RTM_NEWROUTE, rtnetlink(7).
func addDefaultRoute(gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	m := ne.AppendUint32(nil, 0) // length, below
	m = ne.AppendUint16(m, unix.RTM_NEWROUTE)
	m = ne.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m = append(m, make([]byte, 8)...) // sequence, port
	m = append(m, unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0)
	m = ne.AppendUint16(m, 4+4)
	m = ne.AppendUint16(m, unix.RTA_GATEWAY)
	m = append(m, gateway.AsSlice()...)
	ne.PutUint32(m, uint32(len(m)))
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	answer := make([]byte, 256)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("add default route: answer of %d bytes: %w", n, err)
	}
	if code := int32(ne.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("add default route: %w", unix.Errno(-code))
	}
	return nil
}

// writeBelow writes a file at path below root, and the directories above it.
func writeBelow(root, path, content string) error {
	target := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.WriteFile(target, []byte(content), 0o644)
}
