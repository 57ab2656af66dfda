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

	"golang.org/x/sys/unix"

	"spore/internal/cleanup"
	"spore/jailer/cgroup"
	"spore/network"
	"spore/network/api"
	"spore/network/mediator"
	"spore/network/policy"
)

// mediation is a spore-net that starts beside the machine whose frames it forwards. The guest runs no program before it is ready.
type mediation struct {
	config  api.Config
	files   mediator.Files
	closing cleanup.Stack // of what is the process's own once it has it

	stop    context.CancelFunc // gives up a start that still goes on
	settled chan struct{}      // closed when the start is over; what follows is then final
	process *mediator.Process  // nil if it failed
	group   *cgroup.Group      // that it is in; nil without one, and if it came out of a pool
	err     error              // why it failed
}

// mediate prepares all that the user can have got wrong, and then has the process that stands between start by itself: waiting, or one
// that it starts if that is nil. That it does not come ends this start of the sandbox.
func (v *supervisor) mediate(ctx context.Context, c *connection, cfg *Network, waiting *mediator.Waiting) (err error) {
	m := &mediation{settled: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.closing.Run())
			if waiting != nil {
				err = errors.Join(err, waiting.Close())
			}
		}
	}()
	if m.config, err = mediatedConfig(v.sb, v.host, cfg, c.place); err != nil {
		return err
	}
	if c.place != nil {
		hosts, err := grantable(cfg, m.config.Surroundings.Host)
		if err == nil {
			err = v.host.Networks.Grant(ctx, v.sb.Config.ID, hosts)
		}
		if err != nil {
			return err
		}
	}
	if err := m.open(v.sb.path(auditFile), c, cfg.Publish); err != nil {
		return err
	}
	c.mtu = api.MaxMTU
	copy(c.mac[:], m.config.GuestMAC)
	c.guest = guestNetwork(c.mac, c.mtu, m.config.Guest, m.config.Gateways)
	c.guest.DNS = texts(m.config.Gateways)
	c.mediation = m
	ctx, m.stop = context.WithTimeoutCause(v.ctx, connectLimit, fmt.Errorf("spore-net was not there within %s", connectLimit))
	go func() {
		defer close(m.settled)
		m.err = errors.Join(m.start(ctx, v, c.place, waiting), m.closing.Run())
		if m.err != nil {
			v.cancel(&connectError{cfg.Choice, m.err})
		}
	}()
	return nil
}

// open opens what the process is given, and the machine's end of what frames go through.
func (m *mediation) open(audit string, c *connection, publish []network.Published) (err error) {
	if m.files.Audit, err = os.OpenFile(audit, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600); err != nil {
		return err
	}
	m.closing.Push(m.files.Audit.Close)
	for _, p := range publish {
		f, bound, err := listen(p)
		if err != nil {
			return err
		}
		m.closing.Push(f.Close)
		m.files.Published = append(m.files.Published, f)
		m.config.Published = append(m.config.Published, api.Published{Protocol: protocolOf(p), Port: p.Guest})
		c.ports = append(c.ports, bound)
	}
	if c.frames, m.files.Frames, err = mediator.Frames(); err != nil {
		return err
	}
	m.closing.Push(m.files.Frames.Close)
	return nil
}

// start makes the process ready.
func (m *mediation) start(ctx context.Context, v *supervisor, place *network.Attachment, waiting *mediator.Waiting) (err error) {
	cfg := v.sb.Config
	if waiting == nil {
		if m.group, err = netGroup(cfg.ID, cfg.JailWithout); err != nil {
			return err
		}
		start := mediator.Config{Exe: v.host.Net, ID: cfg.ID, Without: cfg.JailWithout}
		if m.group != nil {
			start.Cgroup = m.group.Dir()
		}
		if place != nil {
			start.NetNS = place.NetNS
		}
		if waiting, err = mediator.Launch(ctx, start); err != nil {
			return err
		}
	}
	m.process, err = waiting.Configure(ctx, v.host.log(), m.config, m.files)
	m.config = api.Config{} // there are secrets in it
	return err
}

// isSettled reports whether the start is over.
func (m *mediation) isSettled() bool {
	select {
	case <-m.settled:
		return true
	default:
		return false
	}
}

// ready waits for the process, and returns it.
func (m *mediation) ready(ctx context.Context) (*mediator.Process, error) {
	select {
	case <-m.settled:
		return m.process, m.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// close ends the process, or its start.
func (m *mediation) close() error {
	m.stop()
	<-m.settled
	var err error
	if m.process != nil {
		err = m.process.Close()
	}
	return errors.Join(err, release(m.group))
}

// connectError says why a sandbox has no network.
type connectError struct {
	network network.Choice
	err     error
}

func (e *connectError) Error() string {
	return fmt.Sprintf("connect to network %s: %v", e.network, e.err)
}
func (e *connectError) Unwrap() error { return e.err }

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
