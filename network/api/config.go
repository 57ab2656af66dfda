// Package api is what crosses the line between the supervisor (spore) and the jailed process that forwards for one mediated
// guest (spore-net): its configuration, and the requests and events of its control socket. It holds plain data only, so that
// both sides may import it.
package api

import (
	"net"
	"net/netip"
	"time"

	"spore/network/policy"
)

// Version is the version of Config. A spore-net refuses any other.
const Version = 1

// File is a position in the list of descriptors that come with the configuration. A negative value means "none".
type File int

// NoFile is the File that names no descriptor.
const NoFile File = -1

// Bounds of a Config. Both sides check them.
const (
	MaxFiles     = 128
	MaxPublished = 100
	MaxSecrets   = 64
	MaxSecret    = 16 << 10 // bytes of a value
	MinMTU       = 1280     // what IPv6 asks of every link (RFC 8200 §5)
	MaxMTU       = 65520    // a whole frame behind its header then fits 64 KiB and a little
)

// Config is everything that spore-net is told. It arrives on descriptor 3, a SOCK_STREAM socket, as one internal/wire frame whose
// first byte brings the descriptors (SCM_RIGHTS). It holds no path.
type Config struct {
	Version int    `json:"version"` // Version
	Sandbox string `json:"sandbox"` // id; for logs and audit lines

	Frames  File `json:"frames"`  // SOCK_SEQPACKET: whole Ethernet frames of the guest's, each behind a virtio_net_hdr of 12 bytes
	Control File `json:"control"` // SOCK_STREAM: requests in, replies and events out
	Audit   File `json:"audit"`   // JSON lines of policy.Event; a file open for appending or a pipe; or NoFile
	Log     File `json:"log"`     // JSON log lines; a pipe; or NoFile

	GuestMAC   net.HardwareAddr `json:"guest_mac"`
	GatewayMAC net.HardwareAddr `json:"gateway_mac"` // ours
	Guest      []netip.Prefix   `json:"guest"`       // the guest's addresses, each with its subnet; one of each family at most
	Gateways   []netip.Addr     `json:"gateways"`    // ours in those subnets: router and name server; one of each family of Guest
	MTU        int              `json:"mtu"`         // bytes, MinMTU to MaxMTU; 0 is MaxMTU

	Rules        policy.Source       `json:"rules"`
	Surroundings policy.Surroundings `json:"surroundings"`
	DNS          []netip.AddrPort    `json:"dns,omitempty"`      // name servers to ask; none: only Names are answered
	Hostname     string              `json:"hostname,omitempty"` // the guest's own: resolves to Guest
	Names        []StaticName        `json:"names,omitempty"`    // answered without asking anybody, under no rule
	Secrets      []Secret            `json:"secrets,omitempty"`
	Roots        []byte              `json:"roots,omitempty"` // PEM: who may certify the hosts of secrets; needed with Secrets
	Published    []Published         `json:"published,omitempty"`
	Limits       Limits              `json:"limits"`
}

// StaticName is a name that the guest can look up whatever the rules are.
type StaticName struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

// Secret is a value that the guest never sees. It has the placeholder, which is replaced on the way to Hosts.
type Secret struct {
	policy.Secret
	Placeholder string `json:"placeholder"` // at least 16 bytes of letters, digits, '_' and '-', unlike any other's
	Value       []byte `json:"value"`       // 1 to MaxSecret bytes; without control characters, which no header can carry
}

// String hides the value, so that no log line shows it.
func (s Secret) String() string { return s.Name }

// GoString hides the value too.
func (s Secret) GoString() string { return s.Name }

// Published is a port of the host's that leads into the guest.
type Published struct {
	File     File            `json:"file"`     // a listening TCP socket, or a bound UDP socket
	Protocol policy.Protocol `json:"protocol"` // TCP or UDP
	Port     uint16          `json:"port"`     // of the guest
}

// Limits bound what a guest can make spore-net use. Zero fields have the defaults of WithDefaults.
type Limits struct {
	Flows       int           `json:"flows,omitempty"`        // open at once, of all protocols
	Opening     int           `json:"opening,omitempty"`      // TCP connections of those that are being dialled or looked at
	Memory      int64         `json:"memory,omitempty"`       // bytes of data on the way, roughly
	DialTimeout time.Duration `json:"dial_timeout,omitempty"` // for the connection to the destination
	TCPIdle     time.Duration `json:"tcp_idle,omitempty"`     // after which a silent connection is closed
	UDPIdle     time.Duration `json:"udp_idle,omitempty"`
	Sniff       time.Duration `json:"sniff,omitempty"` // for the guest's first bytes, where they decide
	Audit       int64         `json:"audit,omitempty"` // bytes that Audit may grow to, if it is a file
}

// WithDefaults is l with every zero field filled in.
func (l Limits) WithDefaults() Limits {
	set(&l.Flows, 1024)
	set(&l.Opening, 128)
	set(&l.Memory, 32<<20)
	set(&l.DialTimeout, 30*time.Second)
	set(&l.TCPIdle, 2*time.Hour)
	set(&l.UDPIdle, 2*time.Minute)
	set(&l.Sniff, 5*time.Second)
	set(&l.Audit, 64<<20)
	return l
}

func set[T int | int64 | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Files lists every File that c names, NoFile included, in no particular order.
func (c *Config) Files() []File {
	out := []File{c.Frames, c.Control, c.Audit, c.Log}
	for _, p := range c.Published {
		out = append(out, p.File)
	}
	return out
}
