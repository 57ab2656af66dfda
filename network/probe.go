package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// Probe tries what networks are made of, in a namespace that is gone when it returns: a bridge, a pair of interfaces, a tap, and every
// sort of rule. It needs root. The error says what is missing, and what provides it.
func Probe(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return ErrRoot
	}
	return onThread(func() error {
		if err := enterNewNetNS(); err != nil {
			return err
		}
		return probeHere(ctx)
	})
}

// Plugins returns where the plugins are that our own networks need, or an error that names one that is missing.
func (n *Networks) Plugins() (string, error) {
	var found []string
	for _, name := range []string{"bridge", "host-local"} {
		path, err := findPlugin(n.cfg.Plugins, name)
		if err != nil {
			return "", err
		}
		found = append(found, path)
	}
	return strings.Join(found, ", "), nil
}

// probeHere is Probe in the calling thread's namespace, which is a new one.
func probeHere(ctx context.Context) error {
	bridge := netlink.NewLinkAttrs()
	bridge.Name = "probe"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
		return fmt.Errorf("make bridge: %w: load the module bridge", err)
	}
	veth := netlink.NewLinkAttrs()
	veth.Name = guestInterface
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: veth, PeerName: "peer"}); err != nil {
		return fmt.Errorf("make pair of interfaces: %w: load the module veth", err)
	}
	tap, err := makeTap(tapInterface)
	if err != nil {
		return fmt.Errorf("%w: load the module tun", err)
	}
	defer tap.Close()
	for _, kind := range []Kind{KindNAT, KindHostOnly, KindInternal} {
		net := Network{Choice: Choice{Kind: kind}, Bridge: "probe", Subnets: pools[:1]}
		if err = errors.Join(err, loadRules(ctx, hostRules(net, nil))); err != nil {
			return fmt.Errorf("rules of %s: %w: use a kernel with nf_tables, its inet and netdev families, conntrack and masquerading", kind, err)
		}
	}
	if err := loadRules(ctx, guestRules(MAC(randomMAC()), pools[:1])); err != nil {
		return fmt.Errorf("rules of a guest: %w: use a kernel with nft_fwd_netdev", err)
	}
	return nil
}
