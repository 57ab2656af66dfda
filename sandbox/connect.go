package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/jailer/cgroup"
	"spore/network"
	"spore/network/api"
	"spore/network/mediator"
	"spore/network/policy"
	vmmapi "spore/vmm/api"
)

// Bounds on what a network may take to come and to go.
const (
	connectLimit    = 30 * time.Second
	disconnectLimit = 30 * time.Second
)

// auditFile is where a sandbox's audit lines go.
const auditFile = "network.log"

// connection is what connects a running sandbox: its place on a network, and the process between, if there is one.
type connection struct {
	place    *network.Attachment // nil rootless
	mediator *mediator.Process   // nil on a switched network
	guest    agent.Network       // what the guest is told
	mac      vmmapi.MAC
	mtu      int
	frames   *os.File            // the VMM's descriptor; of the mediator's, or the tap
	ports    []network.Published // with the ports that were found free
	group    *cgroup.Group       // of the mediator; nil without one
}

// connect gives the sandbox its network, before its machine is started.
func (v *supervisor) connect() (err error) {
	cfg := v.sb.Config.Network
	if cfg == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(v.ctx, connectLimit, fmt.Errorf("the network was not there within %s", connectLimit))
	defer cancel()
	c := &connection{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect to network %s: %w", cfg.Choice, err), v.disconnect(c))
		}
	}()
	if err := v.takePlace(ctx, c, cfg); err != nil {
		return err
	}
	v.clock.Done("network")
	if cfg.Mediated() {
		if err := v.mediate(ctx, c, cfg); err != nil {
			return err
		}
		v.clock.Done("spore-net")
	}
	v.setConnection(c) // whole, for those who ask about it from now on
	v.note(func(st *State) { st.Network = c.record() })
	return nil
}

// takePlace takes the sandbox's place on the network. Who is not root has none and needs none: spore-net dials from where the
// user does.
func (v *supervisor) takePlace(ctx context.Context, c *connection, cfg *Network) error {
	if os.Geteuid() != 0 && cfg.Mediated() && cfg.Kind == network.KindNAT {
		return nil
	}
	request := network.Request{Sandbox: v.sb.Config.ID, Choice: cfg.Choice, Mediated: cfg.Mediated(), MTU: cfg.MTU}
	place, err := takePlace(v.host.Pool, request)
	if err != nil {
		v.host.log().Warn("no place out of the pool", "err", err)
	}
	if place == nil {
		place, err = v.host.Networks.Attach(ctx, request)
	}
	if err != nil {
		return err
	}
	c.place = place
	if request.Mediated {
		return nil
	}
	c.frames, c.mtu = place.Tap, place.MTU
	if copy(c.mac[:], place.MAC) != len(c.mac) {
		return fmt.Errorf("the network gave the MAC address %s", place.MAC)
	}
	c.guest = guestNetwork(c.mac, c.mtu, place.Addresses, place.Gateways)
	c.guest.Search = place.Search
	c.guest.DNS = texts(firstList(cfg.DNS, place.DNS))
	return nil
}

// mediate starts the process that stands between.
func (v *supervisor) mediate(ctx context.Context, c *connection, cfg *Network) error {
	sb := v.sb
	theirs, err := mediatedConfig(sb, v.host, cfg, c.place)
	if err != nil {
		return err
	}
	if c.place != nil {
		hosts, err := grantable(cfg, theirs.Surroundings.Host)
		if err == nil {
			err = v.host.Networks.Grant(ctx, sb.Config.ID, hosts)
		}
		if err != nil {
			return err
		}
	}
	audit, err := os.OpenFile(sb.path(auditFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer audit.Close()
	files := mediator.Files{Audit: audit}
	defer func() {
		for _, f := range files.Published {
			f.Close()
		}
	}()
	for _, p := range cfg.Publish {
		f, bound, err := listen(p)
		if err != nil {
			return err
		}
		files.Published = append(files.Published, f)
		c.ports = append(c.ports, bound)
		theirs.Published = append(theirs.Published, api.Published{Protocol: protocolOf(p), Port: p.Guest})
	}
	start := mediator.Config{Exe: v.host.Net, ID: sb.Config.ID, Without: sb.Config.JailWithout, Log: v.host.log()}
	if c.place != nil {
		start.NetNS = c.place.NetNS
	}
	group, err := netGroup(sb.Config)
	if err != nil {
		return err
	}
	c.group = group
	if group != nil {
		start.Cgroup = group.Dir()
	}
	if c.mediator, err = mediator.Start(ctx, start, theirs, files); err != nil {
		return err
	}
	c.frames, c.mtu = c.mediator.Frames(), api.MaxMTU
	copy(c.mac[:], theirs.GuestMAC)
	c.guest = guestNetwork(c.mac, c.mtu, theirs.Guest, theirs.Gateways)
	c.guest.DNS, c.guest.CA = texts(theirs.Gateways), c.mediator.CA()
	return nil
}

// mediatedConfig is what spore-net of this start is told.
func mediatedConfig(sb *Sandbox, host Host, cfg *Network, place *network.Attachment) (api.Config, error) {
	out := api.Config{
		Version: api.Version, Sandbox: sb.Config.ID, GatewayMAC: api.GatewayMAC(), Rules: cfg.Rules, Hostname: sb.Config.Hostname,
	}
	out.GuestMAC, out.Guest, out.Gateways = ownAddresses()
	var err error
	if out.Surroundings, err = surroundings(host, place); err != nil {
		return out, err
	}
	servers := cfg.DNS
	if len(servers) == 0 && place != nil {
		servers = place.DNS
	}
	if len(servers) == 0 && place == nil {
		servers = host.Networks.HostNameservers()
	}
	for _, a := range servers {
		out.DNS = append(out.DNS, netip.AddrPortFrom(a, 53))
	}
	for _, s := range cfg.Secrets {
		value, err := s.value(host.Secrets)
		if err != nil {
			return out, err
		}
		out.Secrets = append(out.Secrets, api.Secret{Secret: policy.Secret{Name: s.Name, Hosts: s.Hosts}, Placeholder: s.Placeholder, Value: []byte(value)})
	}
	if len(out.Secrets) > 0 {
		out.Roots, err = systemRoots()
	}
	return out, err
}

// ownAddresses are a mediated guest's: of this start's own, though none but its spore-net ever sees them, because no two guests
// are to be twins. The ranges are those of package network/api.
func ownAddresses() (net.HardwareAddr, []netip.Prefix, []netip.Addr) {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	mac := api.GuestMAC()
	copy(mac[3:], b[:3])
	v4 := api.GuestAddresses()[0].Addr().As4() // 198.18.0.0/15, in subnets of four
	v4[1] |= b[3] & 1
	v4[2], v4[3] = b[4], b[5]&^3|2
	v6 := api.GuestAddresses()[1].Addr().As16()
	binary.BigEndian.PutUint16(v6[6:], binary.BigEndian.Uint16(b[6:]))
	guest := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), 30), netip.PrefixFrom(netip.AddrFrom16(v6), 64)}
	v4[3]--
	v6[15] = 1
	return mac, guest, []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// grantable are those of the host's own addresses that its firewall must let a mediated sandbox reach: what a rule names, and name servers.
func grantable(cfg *Network, hosts []netip.Addr) ([]netip.Addr, error) {
	p, err := policy.Parse(cfg.Rules)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range hosts {
		if (p.NamesAddress(a) || slices.Contains(cfg.DNS, a)) && !a.IsLoopback() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// surroundings are the addresses that a guest does not reach unless a rule names them.
func surroundings(host Host, place *network.Attachment) (policy.Surroundings, error) {
	var out policy.Surroundings
	all, err := net.InterfaceAddrs()
	if err != nil {
		return out, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out.Host = append(out.Host, p.Addr().Unmap())
		}
	}
	if place == nil {
		return out, nil
	}
	for _, p := range place.Addresses {
		out.Sandboxes = append(out.Sandboxes, p.Masked())
	}
	out.Host = append(out.Host, place.Gateways...)
	networks, err := host.Networks.List()
	for _, n := range networks {
		out.Sandboxes = append(out.Sandboxes, n.Subnets...)
	}
	return out, err
}

// listen opens a published port.
func listen(p network.Published) (_ *os.File, bound network.Published, err error) {
	defer func() {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("--publish %s: port %d is taken on this host: use another, or 0 for any", p, p.Host.Port())
		} else if err != nil {
			err = fmt.Errorf("--publish %s: %w", p, err)
		}
	}()
	bound = p
	if p.Protocol == "udp" {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.Host))
		if err != nil {
			return nil, bound, err
		}
		defer conn.Close()
		bound.Host = netip.AddrPortFrom(p.Host.Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		f, err := conn.File()
		return f, bound, err
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.Host))
	if err != nil {
		return nil, bound, err
	}
	defer l.Close()
	bound.Host = netip.AddrPortFrom(p.Host.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
	f, err := l.File()
	return f, bound, err
}

func protocolOf(p network.Published) policy.Protocol {
	if p.Protocol == "udp" {
		return policy.UDP
	}
	return policy.TCP
}

func guestNetwork(mac vmmapi.MAC, mtu int, addresses []netip.Prefix, gateways []netip.Addr) agent.Network {
	return agent.Network{MAC: mac.String(), MTU: mtu, Addresses: texts(addresses), Gateways: texts(gateways)}
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.String()
	}
	return out
}

func firstList[T any](lists ...[]T) []T {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// told is what the guest is told of its network; nil without one.
func (c *connection) told() *agent.Network {
	if c == nil {
		return nil
	}
	return &c.guest
}

// device is the machine's network interface; nil without a network.
func (c *connection) device(file func(*os.File) vmmapi.File) (*vmmapi.Net, error) {
	if c == nil {
		return nil, nil
	}
	theirs, err := duplicate(c.frames)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return &vmmapi.Net{File: file(theirs), MAC: c.mac, MTU: uint16(c.mtu), Offload: c.mediator != nil || c.place.Offload}, nil
}

// SameDevice reports whether a guest of one network can wake on the other.
func (n *Network) SameDevice(other *Network) bool { return nicKindOf(n) == nicKindOf(other) }

// String is what --network was; a nil n is none.
func (n *Network) String() string {
	if n == nil {
		return string(network.KindNone)
	}
	return n.Choice.String()
}

// nicKind is what decides which features a guest's driver and the device agree on: machines wake in the same only.
type nicKind string

func nicKindOf(n *Network) nicKind {
	switch {
	case n == nil:
		return ""
	case n.Mediated():
		return "mediated"
	}
	return nicKind(fmt.Sprintf("switched:%s:%d", n.Choice, n.MTU)) // the MTU is the network's
}
