package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// raiseBridge makes a network's bridge and its rules, if they are not there. The rules are in place before
// anything can be on the bridge. The caller holds the directory's lock.
func (n *Networks) raiseBridge(ctx context.Context, net Network, dns []netip.Addr) error {
	rules := hostRules(net, dns)
	loaded := n.path(networksDir, net.key()+".nft")
	link, err := netlink.LinkByName(net.Bridge)
	if err == nil && tableExists(tableFamily(net.Kind), net.Bridge) {
		if was, err := os.ReadFile(loaded); err == nil && string(was) == rules {
			return nil
		}
	}
	if err != nil {
		if link, err = makeBridge(net); err != nil {
			return fmt.Errorf("make bridge %s: %w", net.Bridge, err)
		}
	}
	granted, err := n.granted(net.Choice)
	if err != nil {
		return err
	}
	if err := loadRules(ctx, rules+granted); err != nil {
		return fmt.Errorf("guard bridge %s: %w", net.Bridge, err)
	}
	if net.Kind == KindNAT {
		if err := openForward(ctx, net.Bridge); err != nil {
			return fmt.Errorf("forward from bridge %s: %w", net.Bridge, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bridge %s up: %w", net.Bridge, err)
	}
	return replaceFile(loaded, []byte(rules))
}

// lowerBridge removes a network's bridge and its rules. The caller holds the directory's lock, and has seen that nobody is on it.
func (n *Networks) lowerBridge(ctx context.Context, net Network) error {
	link, err := netlink.LinkByName(net.Bridge)
	switch {
	case err == nil:
		err = netlink.LinkDel(link)
	case errors.As(err, &netlink.LinkNotFoundError{}):
		err = nil
	}
	if net.Kind == KindNAT {
		err = errors.Join(err, closeForward(ctx, net.Bridge))
	}
	// The rules go last: nothing may be on a bridge without.
	if err = errors.Join(err, deleteTable(ctx, tableFamily(net.Kind), net.Bridge)); err != nil {
		return fmt.Errorf("remove bridge %s: %w", net.Bridge, err)
	}
	return removeFile(n.path(networksDir, net.key()+".nft"))
}

// makeBridge makes a bridge with the addresses that the host has on it. Its MAC is set, so that it does not change with what is on it.
func makeBridge(net Network) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = net.Bridge, net.MTU, randomMAC()
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, err
	}
	err := configureBridge(net, bridge)
	if err != nil {
		return nil, errors.Join(err, netlink.LinkDel(bridge))
	}
	return bridge, nil
}

func configureBridge(net Network, bridge netlink.Link) error {
	quiet := map[string]string{"ipv6/conf/%s/accept_ra": "0", "ipv6/conf/%s/autoconf": "0", "ipv6/conf/%s/accept_dad": "0"}
	quiet["ipv6/conf/%s/disable_ipv6"] = "0" // whatever new interfaces of the host have
	if net.Kind == KindInternal {
		quiet["ipv6/conf/%s/disable_ipv6"] = "1"
	}
	if net.Kind != KindNAT {
		quiet["ipv4/conf/%s/forwarding"] = "0"
	}
	for key, value := range quiet {
		if err := setSysctl(fmt.Sprintf(key, net.Bridge), value); err != nil {
			return err
		}
	}
	if net.Kind == KindInternal {
		return nil
	}
	for i, g := range net.Gateways {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(g, net.Subnets[i].Bits()))}
		if g.Is6() {
			addr.Flags = unix.IFA_F_NODAD
			if net.Kind == KindNAT {
				if err := keepRouterAdvertisements(); err != nil {
					return err
				}
			}
		}
		if err := netlink.AddrAdd(bridge, addr); err != nil {
			return fmt.Errorf("address %s: %w", addr.IPNet, err)
		}
	}
	return nil
}

// keepRouterAdvertisements lets interfaces that take their IPv6 routes from router advertisements go on doing so when the bridge plugin
// makes the host a router (accept_ra 1 means "unless forwarding", 2 means always: Documentation/networking/ip-sysctl.rst).
func keepRouterAdvertisements() error {
	paths, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra") // only a bad pattern is an error
	for _, path := range paths {
		forwarding, err := os.ReadFile(filepath.Join(filepath.Dir(path), "forwarding"))
		if err != nil || string(forwarding) != "0\n" {
			continue
		}
		if v, err := os.ReadFile(path); err == nil && string(v) == "1\n" {
			if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// setSysctl sets a variable below /proc/sys/net of the calling thread's namespace. One that is not there, in a kernel without IPv6, is fine.
func setSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// randomMAC is a locally administered unicast address (IEEE 802-2014 §8.4).
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// vnetHeader is the length of the header before each frame: virtio_net_hdr with num_buffers (virtio 1.2 §5.1.6).
const vnetHeader = 12

// offloads are what a tap takes and gives in the header, not done in the frame: checksums, and segments of TCP (linux/if_tun.h).
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN

// makeTap makes a tap in the calling thread's namespace. It lasts until the last descriptor of it is closed.
func makeTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	}
	if err == nil {
		err = os.NewSyscallError("TUNSETVNETHDRSZ", unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader))
	}
	if err == nil {
		err = os.NewSyscallError("TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tap: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil // only now can it be polled
}
