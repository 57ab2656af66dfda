package api

import (
	"net"
	"net/netip"
)

// What a mediated guest and its gateway are called unless somebody wishes otherwise. They are the same in every sandbox: none of
// the guest's packets ever leaves spore-net, so nobody else sees them, and a machine that wakes elsewhere needs no others. The
// IPv4 range is set aside for benchmarks (RFC 2544), which no network of a user's has; the IPv6 range is a private one (RFC 4193).

// GuestMAC is the guest's address on the link.
func GuestMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x50, 0x00, 0x00, 0x02} }

// GatewayMAC is ours.
func GatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x50, 0x00, 0x00, 0x01} }

// GuestAddresses is one address of each family, with its subnet.
func GuestAddresses() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("198.18.0.2/30"), netip.MustParsePrefix("fd53:706f:7265::2/64")}
}

// GatewayAddresses is ours in those subnets, in the same order.
func GatewayAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd53:706f:7265::1")}
}
