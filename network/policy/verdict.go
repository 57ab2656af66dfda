package policy

import (
	"fmt"
	"net/netip"
)

// Protocol is what a flow is made of.
type Protocol uint8

// The protocols. AnyProtocol stands in rules only; DNS in events only, where it is a question to the resolver.
const (
	AnyProtocol Protocol = iota
	TCP
	UDP
	ICMP // echo requests, of IPv4 and IPv6; everything else of ICMP is never forwarded
	DNS
)

var protocolNames = [...]string{"any", "tcp", "udp", "icmp", "dns"}

// String is the name as in rules, "tcp".
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// MarshalText writes the name.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Protocol) UnmarshalText(b []byte) error {
	for i, name := range protocolNames {
		if name == string(b) {
			*p = Protocol(i)
			return nil
		}
	}
	return fmt.Errorf("protocol %.16q: not known", b)
}

// Flow is one connection, or one run of datagrams, that the guest wants to have.
type Flow struct {
	// Protocol is TCP, UDP or ICMP.
	Protocol Protocol `json:"protocol"`
	// Destination is where the guest's packets say they go. The port of ICMP is 0. An IPv4 address in IPv6's clothes
	// (::ffff:192.0.2.1) is judged as the IPv4 address that it is; a zone is ignored.
	Destination netip.AddrPort `json:"destination"`
}

// Action is what becomes of a flow or a question. The zero value is Deny.
type Action uint8

// The actions.
const (
	Deny Action = iota
	// Inspect lets the guest's first bytes come in, and nothing out, until Policy.Named has judged what they say.
	Inspect
	Allow
)

var actionNames = [...]string{"deny", "inspect", "allow"}

// String is "deny", "inspect" or "allow".
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// MarshalText writes the word.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *Action) UnmarshalText(b []byte) error {
	for i, name := range actionNames {
		if name == string(b) {
			*a = Action(i)
			return nil
		}
	}
	return fmt.Errorf("action %.16q: not known", b)
}

// Verdict is what the policy says of a flow or a name.
type Verdict struct {
	Action Action `json:"action"`
	// Rule is the rule that decided, as Rule.String gives it ("allow example.org"), or the name of a default
	// ("default:private"). It holds nothing that came from the guest.
	Rule string `json:"rule"`
	// Reason is a sentence without a full stop. Names in it are canonical (CanonicalName) or quoted.
	Reason string `json:"reason,omitempty"`
	// Remedy is what the user could write to have it otherwise, or "". Only denials have one.
	Remedy string `json:"remedy,omitempty"`
}

// Spoken is what the first bytes of a connection are.
type Spoken uint8

// What can be spoken. The zero value is SpokenOther: anything that says no name, a server that speaks first included.
const (
	SpokenOther Spoken = iota
	SpokenTLS
	// SpokenTLSEncrypted is a ClientHello with an encrypted_client_hello extension (RFC 9849): what name it asks for is
	// known to the server only.
	SpokenTLSEncrypted
	SpokenHTTP
)

var spokenNames = [...]string{"other", "tls", "tls-ech", "http"}

// String is a word for logs.
func (s Spoken) String() string {
	if int(s) < len(spokenNames) {
		return spokenNames[s]
	}
	return fmt.Sprintf("spoken(%d)", uint8(s))
}
