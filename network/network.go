// Package network is the networks that sandboxes can be on: their records, CNI, the network namespaces, the taps and the filter
// in front of them, and a pool of all that. It forwards nothing itself: a switched guest's frames go through the kernel, a
// mediated guest's through spore-net.
package network

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Networks is a directory of networks and attachments. Any number of processes may use it at once.
type Networks struct {
	cfg Config
}

// Config says where networks live.
type Config struct {
	Dir     string       // records, namespaces, CNI's results and addresses; made if it is missing
	Plugins []string     // directories of CNI plugins, the first that has one wins
	Lists   []string     // directories of CNI configuration lists, for cni:NAME
	Log     *slog.Logger // nil is silent

	resolvConf []string // where the host's nameservers are; tests have their own
}

// Network is the record of one network.
type Network struct {
	Choice
	Created  time.Time      `json:"created,omitzero"`
	Subnets  []netip.Prefix `json:"subnets,omitempty"`  // one of each family at most
	Ranges   []AddrRange    `json:"ranges,omitempty"`   // parts of the subnets that sandboxes have addresses of; none: all
	Gateways []netip.Addr   `json:"gateways,omitempty"` // of the subnets; the host's own address on nat and host-only
	Bridge   string         `json:"bridge,omitempty"`   // interface of the host
	MTU      int            `json:"mtu,omitempty"`      // 0: Linux's own, or the bridge's
	DNS      []netip.Addr   `json:"dns,omitempty"`      // nameservers for guests; none: the host's, where they can be reached
	Picked   bool           `json:"picked,omitempty"`   // the subnets are ours to choose, and to choose anew
}

// Options is what a user may say of a network when it is made. The zero value leaves all to us.
type Options struct {
	Subnets  []netip.Prefix // one of each family at most; none: picked so that no route of the host covers them
	Ranges   []AddrRange    // parts of the subnets for sandboxes, one of each family at most; none: all. On a bridge there are others
	Gateways []netip.Addr   // inside the subnets; none: the first address of each
	MTU      int            // bytes, 1280 to 65535; 0: the kernel's
	NoIPv6   bool           // pick no IPv6 subnet
	DNS      []netip.Addr   // nameservers for guests
}

// AddrRange is a range of addresses, both ends included.
type AddrRange struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("no such network")
	ErrExists   = errors.New("there is one already")
	ErrInUse    = errors.New("sandboxes are on it")
	ErrRoot     = errors.New("needs root: without, there is only nat")
)

// Open opens the directory of networks. It starts nothing and needs no privilege.
func Open(cfg Config) (*Networks, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.resolvConf == nil {
		cfg.resolvConf = resolvConf
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	cfg.Dir = dir
	n := &Networks{cfg: cfg}
	for _, d := range []string{networksDir, attachmentsDir, netnsDir, addressesDir, resultsDir} {
		if err := os.MkdirAll(n.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open networks: %w", err)
		}
	}
	return n, nil
}

// key is the name of a network's files, and CNI's name for it.
func (c Choice) key() string { return strings.ReplaceAll(c.String(), ":", "-") }

// bridgeName is the name of the bridge that a network of ours has: the same each time, and another one for another directory.
func (n *Networks) bridgeName(c Choice) string {
	h := fnv.New32a()
	h.Write([]byte(n.cfg.Dir + "\x00" + c.String()))
	return fmt.Sprintf("spore-%08x", h.Sum32())
}

// Create makes the record of a network: nat, internal:NAME, host-only or bridge:NAME. All but the last come by themselves when a
// sandbox wants them first. Nothing of the host changes before a sandbox is on it.
func (n *Networks) Create(ctx context.Context, c Choice, o Options) (Network, error) {
	unlock, err := n.lock()
	if err != nil {
		return Network{}, err
	}
	defer unlock()
	if _, err := n.load(c); !errors.Is(err, fs.ErrNotExist) {
		return Network{}, errors.Join(fmt.Errorf("create network %s: %w: spore network rm %s removes it", c, ErrExists, c), err)
	}
	net, err := n.design(c, o)
	if err != nil {
		return Network{}, fmt.Errorf("create network %s: %w", c, err)
	}
	return net, n.save(net)
}

// design works out a network from what the user says of it.
func (n *Networks) design(c Choice, o Options) (Network, error) {
	net := Network{Choice: c, Created: time.Now().UTC(), Bridge: n.bridgeName(c), MTU: o.MTU, DNS: o.DNS}
	switch {
	case c.None():
		return net, errors.New("none is no network")
	case c.Kind == KindCNI:
		return net, fmt.Errorf("its record is a configuration list in %s", strings.Join(n.cfg.Lists, ", "))
	case c.Kind == KindBridge && len(o.Subnets) == 0:
		return net, errors.New("say which subnet its segment is with --subnet, what of that is for sandboxes with --range, and the router with --gateway if that is not the first of it")
	case o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65535):
		return net, fmt.Errorf("MTU %d: it must be 1280 to 65535", o.MTU)
	case c.Kind == KindBridge:
		net.Bridge = c.Name
	}
	var err error
	net.Subnets = o.Subnets
	if len(o.Subnets) == 0 {
		if len(o.Gateways)+len(o.Ranges) > 0 {
			return net, errors.New("a gateway and a range are of a subnet: give that too")
		}
		net.Picked = true
		if net.Subnets, err = n.pick(c, !o.NoIPv6); err != nil {
			return net, err
		}
	}
	if net.Subnets, net.Gateways, err = checkSubnets(net.Subnets, o.Gateways); err == nil {
		net.Ranges, err = checkRanges(net.Subnets, o.Ranges)
	}
	if c.Kind == KindInternal {
		net.Gateways = nil
	}
	return net, err
}

// pick chooses subnets that neither a route of the host nor another network has.
func (n *Networks) pick(c Choice, ipv6 bool) ([]netip.Prefix, error) {
	taken, err := hostPrefixes(n.bridgeName(c))
	if err != nil {
		return nil, err
	}
	all, err := n.List()
	if err != nil {
		return nil, err
	}
	for _, other := range all {
		if other.Choice != c {
			taken = append(taken, other.Subnets...)
		}
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		ipv6 = false
	}
	return pickSubnets(taken, ipv6)
}

// load reads the record of a network.
func (n *Networks) load(c Choice) (Network, error) {
	var net Network
	err := readJSON(n.path(networksDir, c.key()+".json"), &net)
	if err == nil && net.Choice != c {
		err = fmt.Errorf("%s.json: it is the record of %s", c.key(), net.Choice)
	}
	return net, err
}

func (n *Networks) save(net Network) error {
	if err := writeJSON(n.path(networksDir, net.key()+".json"), net); err != nil {
		return fmt.Errorf("create network %s: %w", net.Choice, err)
	}
	return nil
}

// ensure returns a network's record, and makes it if it is one that comes by itself. Subnets that we chose are chosen anew when the host has
// got a route to them since, and nobody is on them. The caller holds the lock.
func (n *Networks) ensure(c Choice) (Network, error) {
	net, err := n.load(c)
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.Kind == KindBridge:
		return net, fmt.Errorf("%w: %s: make it with: spore network create --subnet PREFIX %s", ErrNotFound, c, c)
	case errors.Is(err, fs.ErrNotExist):
		if net, err = n.design(c, Options{}); err == nil {
			err = n.save(net)
		}
		return net, err
	case err != nil || c.Kind == KindBridge:
		return net, err
	}
	if _, err := netlink.LinkByName(net.Bridge); err == nil {
		return net, nil // it is in use as it is
	}
	taken, err := hostPrefixes(net.Bridge)
	if err != nil || !slices.ContainsFunc(net.Subnets, func(p netip.Prefix) bool { return overlapsAny(p, taken) }) {
		return net, err
	}
	if !net.Picked {
		return net, fmt.Errorf("network %s: the host has a route to %v already: remove one of the two", c, net.Subnets)
	}
	fresh, err := n.design(c, Options{MTU: net.MTU, DNS: net.DNS, NoIPv6: len(net.Subnets) < 2})
	if err != nil {
		return net, err
	}
	fresh.Created = net.Created
	return fresh, errors.Join(os.RemoveAll(n.path(addressesDir, net.key())), n.save(fresh))
}

// List returns all networks with a record, by kind and name.
func (n *Networks) List() ([]Network, error) {
	entries, err := os.ReadDir(n.path(networksDir))
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []Network
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		var net Network
		err := readJSON(n.path(networksDir, e.Name()), &net)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list networks: %w", err)
		}
		all = append(all, net)
	}
	slices.SortFunc(all, func(a, b Network) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// Lists returns the choices that the host's CNI configuration lists offer.
func (n *Networks) Lists() (all []Choice) {
	for _, name := range listNames(n.cfg.Lists) {
		all = append(all, Choice{KindCNI, name})
	}
	return all
}

// Inspect returns a network and who is on it.
func (n *Networks) Inspect(c Choice) (Network, []Attachment, error) {
	net, err := n.load(c)
	if c.Kind == KindCNI && slices.Contains(n.Lists(), c) {
		net, err = Network{Choice: c}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Network{}, nil, fmt.Errorf("inspect network: %w: %s (spore network ls lists them)", ErrNotFound, c)
	}
	if err != nil {
		return Network{}, nil, fmt.Errorf("inspect network %s: %w", c, err)
	}
	on, err := n.on(c)
	all := []Attachment{}
	for _, r := range on {
		all = append(all, r.Attachment)
	}
	return net, all, err
}

// on returns the attachments to a network.
func (n *Networks) on(c Choice) ([]record, error) {
	return n.records(func(r record) bool { return r.Choice == c })
}

// Remove takes a network away. It is refused with ErrInUse while a sandbox is on it.
func (n *Networks) Remove(ctx context.Context, c Choice) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	net, err := n.load(c)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network: %w: %s (spore network ls lists them)", ErrNotFound, c)
	}
	if err != nil {
		return fmt.Errorf("remove network %s: %w", c, err)
	}
	on, err := n.on(c)
	if err != nil {
		return fmt.Errorf("remove network %s: %w", c, err)
	}
	if len(on) > 0 {
		return fmt.Errorf("remove network %s: %w: %d of them, the first is %s", c, ErrInUse, len(on), on[0].Sandbox)
	}
	if !tableless(c.Kind) {
		if err := n.lowerBridge(ctx, net); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(n.path(addressesDir, net.key())); err != nil {
		return fmt.Errorf("remove network %s: %w", c, err)
	}
	return removeFile(n.path(networksDir, net.key()+".json"))
}
