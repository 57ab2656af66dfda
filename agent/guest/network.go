package guest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// interfaceName is what the only network interface is called.
const interfaceName = "eth0"

// Bounds on agent.Network.
const (
	maxAddresses = 32
	maxServers   = 8
	maxDomains   = 32
	maxHosts     = 4096
	maxCA        = 1 << 20 // bytes
)

// setNetwork makes the guest's network interface, names and trusted certificates what n says. was is the machine that this one continues
// from: connections that it had are reset.
func (a *server) setNetwork(n *agent.Network, was bool) error {
	if n == nil {
		return nil
	}
	p, err := parseNetwork(n)
	if err != nil {
		return err
	}
	if err := p.configure(was); err != nil {
		return fmt.Errorf("interface: %w", err)
	}
	if err := a.setNames(n); err != nil {
		return fmt.Errorf("names: %w", err)
	}
	if err := a.setTrust(n.CA); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	return nil
}

// plan is an agent.Network, understood.
type plan struct {
	mac       []byte // nil leaves it
	mtu       uint32
	addresses []netip.Prefix
	gateways  []netip.Addr
}

// parseNetwork judges what the host says. It is to be believed, but what is wrong is better said than half done.
func parseNetwork(n *agent.Network) (plan, error) {
	p := plan{mtu: uint32(n.MTU)}
	switch {
	case len(n.Addresses) > maxAddresses || len(n.Gateways) > maxAddresses || len(n.DNS) > maxServers || len(n.Search) > maxDomains || len(n.Hosts) > maxHosts || len(n.CA) > maxCA:
		return p, errors.New("more addresses, names or certificates than there may be")
	case n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535):
		return p, fmt.Errorf("MTU of %d bytes", n.MTU)
	}
	if n.MAC != "" {
		var err error
		if p.mac, err = hex.DecodeString(strings.ReplaceAll(n.MAC, ":", "")); err != nil || len(p.mac) != 6 {
			return p, fmt.Errorf("MAC address %q", n.MAC)
		}
	}
	for _, s := range n.Addresses {
		a, err := netip.ParsePrefix(s)
		if err != nil {
			return p, err
		}
		p.addresses = append(p.addresses, a)
	}
	for _, s := range n.Gateways {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return p, err
		}
		p.gateways = append(p.gateways, g.WithZone(""))
	}
	for _, s := range append(append(append([]string(nil), n.DNS...), n.Search...), n.Hosts...) {
		if strings.ContainsAny(s, "\n\x00") {
			return p, fmt.Errorf("name %q has two lines", s)
		}
	}
	return p, nil
}

// nic is the network interface as the kernel has it.
type nic struct {
	index  uint32
	name   string
	maxMTU uint32 // 0 is unknown
}

// configure finds the interface and applies the plan to it.
func (p plan) configure(was bool) error {
	c, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.close()
	i, err := c.findNIC()
	if err != nil {
		return err
	}
	return p.apply(c, i, was)
}

// apply gives the interface what the plan says and nothing else: whatever it had is gone before. The order is that of the kernel's
// side effects: an interface that is down has no routes, no neighbours and no addresses of IPv6.
func (p plan) apply(c *netlink, i nic, was bool) error {
	stale, err := c.addressesOf(i.index)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var down batch
	down.add("take down", unix.RTM_NEWLINK, 0, linkMessage(i.index, 0, unix.IFF_UP))
	for _, a := range stale {
		// Going down may have taken it along, or another one of its prefix.
		down.add("remove an address", unix.RTM_DELADDR, 0, a, unix.EADDRNOTAVAIL)
	}
	if err := c.do(&down); err != nil {
		return err
	}
	if was { // with nowhere for a reset to go: the peers are another machine's
		if err := resetConnections(); err != nil {
			return fmt.Errorf("reset connections: %w", err)
		}
	}
	return c.do(p.up(i))
}

// up is the second half of configure.
func (p plan) up(i nic) *batch {
	t := &batch{}
	if i.name != interfaceName {
		t.add("rename", unix.RTM_NEWLINK, 0, linkMessage(i.index, 0, 0))
		t.attr(unix.IFLA_IFNAME, append([]byte(interfaceName), 0))
	}
	t.add("bring up", unix.RTM_NEWLINK, 0, linkMessage(i.index, unix.IFF_UP, unix.IFF_UP))
	if p.mac != nil {
		t.attr(unix.IFLA_ADDRESS, p.mac)
	}
	if p.mtu != 0 {
		mtu := p.mtu
		if i.maxMTU != 0 { // of the machine that this one continues from: it was told so once and for all
			mtu = min(mtu, i.maxMTU)
		}
		t.attr(unix.IFLA_MTU, native.AppendUint32(nil, mtu))
	}
	for _, a := range p.addresses {
		body := append([]byte{family(a.Addr()), byte(a.Bits()), 0, 0}, native.AppendUint32(nil, i.index)...)
		t.add("add address "+a.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
		t.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
		t.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
		if a.Addr().Is6() { // nobody else has it, so there is no second to wait
			t.attr(unix.IFA_FLAGS, native.AppendUint32(nil, unix.IFA_F_NODAD))
		} else if a.Bits() < 31 {
			t.attr(unix.IFA_BROADCAST, broadcast(a))
		}
	}
	for _, g := range p.gateways {
		flags := uint32(0)
		if !p.reaches(g) {
			flags = unix.RTNH_F_ONLINK
		}
		body := []byte{family(g), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
		t.add("add route by "+g.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, native.AppendUint32(body, flags))
		t.attr(unix.RTA_GATEWAY, g.AsSlice())
		t.attr(unix.RTA_OIF, native.AppendUint32(nil, i.index))
	}
	return t
}

// reaches reports whether g is a neighbour by the prefix of an address.
func (p plan) reaches(g netip.Addr) bool {
	if g.IsLinkLocalUnicast() && g.Is6() {
		return true
	}
	for _, a := range p.addresses {
		if a.Contains(g) {
			return true
		}
	}
	return false
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// broadcast is the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) []byte {
	a := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return a[:]
}

// linkMessage is struct ifinfomsg.
func linkMessage(index, flags, change uint32) []byte {
	b := make([]byte, 4, 16)
	for _, v := range []uint32{index, flags, change} {
		b = native.AppendUint32(b, v)
	}
	return b
}

// errNoNIC says that the machine was given a network but no device for it.
var errNoNIC = errors.New("the machine has none")

// findNIC finds the interface that is a device's: all others that can carry Ethernet frames (veth, bridge, tun, …) say what kind they are.
func (n *netlink) findNIC() (nic, error) {
	var found nic
	const skipStats = 8 // RTEXT_FILTER_SKIP_STATS
	var request batch
	request.add("", 0, 0, make([]byte, 16))
	request.attr(unix.IFLA_EXT_MASK, native.AppendUint32(nil, skipStats))
	err := n.dump(unix.RTM_GETLINK, request.b[netlinkHeader:], func(body []byte) {
		if len(body) < 16 || native.Uint16(body[2:]) != unix.ARPHRD_ETHER || found.index != 0 {
			return
		}
		i := nic{index: native.Uint32(body[4:])}
		virtual := false
		attributes(body[16:], func(kind uint16, value []byte) {
			switch kind {
			case unix.IFLA_IFNAME:
				i.name = unix.ByteSliceToString(value)
			case unix.IFLA_MAX_MTU:
				if len(value) == 4 {
					i.maxMTU = native.Uint32(value)
				}
			case unix.IFLA_LINKINFO:
				attributes(value, func(kind uint16, _ []byte) { virtual = virtual || kind == unix.IFLA_INFO_KIND })
			}
		})
		if !virtual {
			found = i
		}
	})
	if err != nil {
		return nic{}, fmt.Errorf("list interfaces: %w", err)
	}
	if found.index == 0 {
		return nic{}, errNoNIC
	}
	return found, nil
}

// addressesOf returns what removes each address of an interface.
func (n *netlink) addressesOf(index uint32) (requests [][]byte, err error) {
	err = n.dump(unix.RTM_GETADDR, make([]byte, 8), func(body []byte) {
		if len(body) < 8 || native.Uint32(body[4:]) != index {
			return
		}
		var t batch
		t.add("", 0, 0, body[:8])
		attributes(body[8:], func(kind uint16, value []byte) {
			if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS {
				t.attr(kind, value)
			}
		})
		requests = append(requests, t.b[netlinkHeader:])
	})
	return requests, err
}
