package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"spore/agent"
	"spore/network"
	"spore/network/mediator"
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
	place     *network.Attachment // nil rootless
	mediation *mediation          // nil on a switched network
	guest     agent.Network       // what the guest is told
	mac       vmmapi.MAC
	mtu       int
	frames    *os.File            // the VMM's end: of a pair, or the tap
	ports     []network.Published // with the ports that were found free
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
			err = errors.Join(&connectError{cfg.Choice, err}, v.disconnect(c))
		}
	}()
	waiting, err := v.takePlace(ctx, c, cfg)
	if err == nil && cfg.Mediated() {
		err = v.mediate(ctx, c, cfg, waiting)
	}
	if err != nil {
		return err
	}
	v.clock.Done("network")
	v.setConnection(c) // for those who ask about it from now on
	v.note(func(st *State) { st.Network = c.record() })
	return nil
}

// takePlace takes the sandbox's place on the network, and the spore-net that waits there, if one does. Who is not root has no place and
// needs none: spore-net dials from where the user does.
func (v *supervisor) takePlace(ctx context.Context, c *connection, cfg *Network) (*mediator.Waiting, error) {
	if os.Geteuid() != 0 && cfg.Mediated() && cfg.Kind == network.KindNAT {
		return nil, nil
	}
	request := network.Request{Sandbox: v.sb.Config.ID, Choice: cfg.Choice, Mediated: cfg.Mediated(), MTU: cfg.MTU}
	place, waiting, err := takePlace(v.host.Pool, request, v.sb.Config.JailWithout)
	if err != nil {
		v.host.log().Warn("no place out of the pool", "err", err)
	}
	if place == nil {
		place, err = v.host.Networks.Attach(ctx, request)
	}
	if err != nil {
		return nil, err
	}
	c.place = place
	if request.Mediated {
		return waiting, nil
	}
	c.frames, c.mtu = place.Tap, place.MTU
	if copy(c.mac[:], place.MAC) != len(c.mac) {
		return nil, fmt.Errorf("the network gave the MAC address %s", place.MAC)
	}
	c.guest = guestNetwork(c.mac, c.mtu, place.Addresses, place.Gateways)
	c.guest.Search = place.Search
	c.guest.DNS = texts(firstList(cfg.DNS, place.DNS))
	return nil, nil
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

// told is what the guest is told of its network once that carries something; nil without one.
func (v *supervisor) told(ctx context.Context) (*agent.Network, error) {
	c := v.connection()
	switch {
	case c == nil:
		return nil, nil
	case c.mediation == nil:
		return &c.guest, nil
	}
	waits := !c.mediation.isSettled()
	p, err := c.mediation.ready(ctx)
	if err != nil {
		return nil, err
	}
	if waits {
		v.clock.Done("spore-net")
	}
	guest := c.guest
	guest.CA = p.CA()
	return &guest, nil
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
	return &vmmapi.Net{File: file(theirs), MAC: c.mac, MTU: uint16(c.mtu), Offload: c.mediation != nil || c.place.Offload}, nil
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
