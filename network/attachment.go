package network

import (
	"context"
	"net"
	"net/netip"
	"os"
)

// Request asks for one sandbox's place on a network.
type Request struct {
	Sandbox  string // id: 12 hexadecimal digits
	Choice   Choice // not none
	Mediated bool   // for cni: the namespace is spore-net's to dial from; nat is mediated anyway, others must not be
	MTU      int    // bytes that a frame may carry; 0 is the network's own. Not more than that
}

// Attachment is one sandbox's place on a network. It lasts until Detach, however this process ends.
type Attachment struct {
	ID        string           `json:"id"`                // 12 hexadecimal digits of its own: what CNI calls the container
	Sandbox   string           `json:"sandbox,omitempty"` // whose it is
	Choice    Choice           `json:"choice"`
	Mediated  bool             `json:"mediated,omitempty"`
	NetNS     string           `json:"netns,omitempty"` // path of the network namespace; "" rootless: the caller's own then
	Tap       *os.File         `json:"-"`               // frames behind a virtio_net_hdr of 12 bytes; nil when mediated. The caller closes it
	Offload   bool             `json:"offload"`         // Tap takes and gives checksums left out, and segments of up to 64 KiB
	MAC       net.HardwareAddr `json:"mac"`             // that the guest must have; when mediated, that of the namespace's eth0
	MTU       int              `json:"mtu"`             // bytes
	Addresses []netip.Prefix   `json:"addresses"`       // that the guest must have, each with its subnet; when mediated, those of the namespace
	Gateways  []netip.Addr     `json:"gateways,omitempty"`
	Routes    []Route          `json:"routes,omitempty"` // all of them, those by way of a gateway too
	DNS       []netip.Addr     `json:"dns,omitempty"`    // nameservers that can be reached from there
	Search    []string         `json:"search,omitempty"` // domains to look names up in
}

// Route is one route of an attachment.
type Route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"` // none: it is on the link
}

// Attach gives a sandbox its place on a network: a namespace with what CNI puts in it and, unless it is mediated, a tap that
// is joined to that behind a filter. The network is made if it is one that may be and is not there. Nothing is left when it fails.
func (n *Networks) Attach(ctx context.Context, r Request) (*Attachment, error) {
	return nil, errNotRoot
}

// Detach takes back every place that a sandbox has, from the records alone. One that has none is no error.
func (n *Networks) Detach(ctx context.Context, sandbox string) error { return nil }

// Sweep finishes or undoes what processes that were killed have left: half-made and half-removed attachments, those whose
// sandbox no longer lives, namespaces, bridges, rules and addresses. It returns how many attachments it removed. live is
// asked for the id of a sandbox.
func (n *Networks) Sweep(ctx context.Context, live func(sandbox string) bool) (int, error) {
	return 0, nil
}

// Counters are the figures of a switched attachment since it was made. Those of a mediated one are spore-net's.
type Counters struct {
	FromGuest Traffic `json:"from_guest"`
	ToGuest   Traffic `json:"to_guest"`
	Spoofed   Traffic `json:"spoofed"` // from the guest, with an address that is not its own: dropped
	Denied    Traffic `json:"denied"`  // from the guest, something that no guest may say: dropped
	Foreign   Traffic `json:"foreign"` // to the guest, not meant for it: dropped
}

// Traffic counts frames and their bytes.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counters returns the figures of a sandbox's switched attachment.
func (n *Networks) Counters(sandbox string) (Counters, error) { return Counters{}, errNotRoot }

// Prepare makes an attachment for a pool: see Attacher.
func (n *Networks) Prepare(ctx context.Context, c Class) (*Attachment, error) { return nil, errNotRoot }

// Bind gives a prepared attachment to a sandbox: see Attacher.
func (n *Networks) Bind(a *Attachment, sandbox string) error { return errNotRoot }

// Discard removes a prepared attachment: see Attacher.
func (n *Networks) Discard(ctx context.Context, a *Attachment) error { return nil }
