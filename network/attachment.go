package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"spore/internal/timing"
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
	ID        string         `json:"id"`                // 12 hexadecimal digits: what CNI calls the container. The sandbox's, unless it comes from a pool
	Sandbox   string         `json:"sandbox,omitempty"` // whose it is
	Choice    Choice         `json:"choice"`
	Mediated  bool           `json:"mediated,omitempty"`
	NetNS     string         `json:"netns,omitempty"`     // path of the network namespace; "" rootless: the caller's own then
	Tap       *os.File       `json:"-"`                   // frames behind a virtio_net_hdr of 12 bytes; nil when mediated. The caller closes it
	Offload   bool           `json:"offload"`             // Tap takes and gives checksums left out, and segments of up to 64 KiB
	MAC       MAC            `json:"mac,omitempty"`       // that the guest must have; when mediated, that of the namespace's eth0
	MTU       int            `json:"mtu,omitempty"`       // bytes
	Addresses []netip.Prefix `json:"addresses,omitempty"` // that the guest must have, each with its subnet; when mediated, those of the namespace
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	Routes    []Route        `json:"routes,omitempty"` // all of them, those by way of a gateway too
	DNS       []netip.Addr   `json:"dns,omitempty"`    // nameservers that can be reached from there
	Search    []string       `json:"search,omitempty"` // domains to look names up in

	lock  *os.File      // of one that is prepared
	steps []timing.Step // where the time of making it went
}

// Steps says where the time of making the attachment went.
func (a *Attachment) Steps() []timing.Step { return a.steps }

// Route is one route of an attachment.
type Route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"` // none: it is on the link
}

// Counters are the figures of a switched attachment since it was made. Those of a mediated one are spore-net's. A segmented frame counts as
// one, with all its bytes.
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

// MAC is the address of an Ethernet interface, six octets; nil is none. Its text is six octets in hexadecimal with colons between them.
type MAC net.HardwareAddr

func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText writes the address as String does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = nil
		return nil
	}
	a, err := net.ParseMAC(string(text))
	if err == nil && len(a) != 6 {
		err = fmt.Errorf("%q is no Ethernet address", text)
	}
	*m = MAC(a)
	return err
}
