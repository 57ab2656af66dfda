package network

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is what sort of network a sandbox is on.
type Kind string

// The kinds of network.
const (
	KindNone     Kind = "none"      // no network device at all
	KindNAT      Kind = "nat"       // out through the host, and nothing in
	KindInternal Kind = "internal"  // sandboxes of that name see one another and nothing else
	KindHostOnly Kind = "host-only" // sandboxes and the host see one another, and nothing beyond
	KindBridge   Kind = "bridge"    // a bridge of the host's, with whatever is on it
	KindCNI      Kind = "cni"       // any CNI configuration list of the host's
)

// kinds are all of them, with whether a name must follow.
var kinds = []struct {
	kind  Kind
	named bool
}{{KindNone, false}, {KindNAT, false}, {KindInternal, true}, {KindHostOnly, false}, {KindBridge, true}, {KindCNI, true}}

// Choice is one network, as --network names it. The zero value is none.
type Choice struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name,omitempty"` // of the segment, the host's bridge, or the configuration list
}

// ErrChoice says that no network can be called that.
var ErrChoice = errors.New("no such kind of network")

// maxName bounds the name in a choice.
const maxName = 63

// ParseChoice reads what --network says: none, nat, internal:NAME, host-only, bridge:NAME or cni:NAME. Nothing at all is
// none. The name of a bridge is an interface's; the others begin with a letter or a digit and go on with letters, digits,
// '_', '-' and '.', at most 63 in all: a name is part of a path, and never leads out of its directory (CVE-2021-20206).
func ParseChoice(s string) (Choice, error) {
	if s == "" {
		return Choice{Kind: KindNone}, nil
	}
	word, name, named := strings.Cut(s, ":")
	for _, k := range kinds {
		if string(k.kind) != word {
			continue
		}
		c := Choice{Kind: k.kind, Name: name}
		switch {
		case named && !k.named:
			return Choice{}, fmt.Errorf("%w: %q: %s has no name", ErrChoice, s, word)
		case k.named && name == "":
			return Choice{}, fmt.Errorf("%w: %q: write %s:NAME", ErrChoice, s, word)
		case k.named && !validName(name):
			return Choice{}, fmt.Errorf("%w: %q: a name has letters, digits, '_', '-' and '.', begins with one of the first two, and is at most %d long", ErrChoice, s, maxName)
		case k.kind == KindBridge && len(name) >= ifNameSize:
			return Choice{}, fmt.Errorf("%w: %q: an interface's name is at most %d long", ErrChoice, s, ifNameSize-1)
		}
		return c, nil
	}
	return Choice{}, fmt.Errorf("%w: %q: there are none, nat, internal:NAME, host-only, bridge:NAME and cni:NAME", ErrChoice, s)
}

// ifNameSize is IFNAMSIZ: an interface's name with the zero that ends it.
const ifNameSize = 16

// validName reports whether a name may be part of a path and of an interface's name.
func validName(s string) bool {
	if s == "" || len(s) > maxName || strings.Contains(s, "..") {
		return false
	}
	for i, r := range []byte(s) {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '_' && r != '-' && r != '.') {
			return false
		}
	}
	return true
}

// String is what ParseChoice reads.
func (c Choice) String() string {
	switch {
	case c.Kind == "":
		return string(KindNone)
	case c.Name == "":
		return string(c.Kind)
	}
	return string(c.Kind) + ":" + c.Name
}

// None reports whether there is no network device.
func (c Choice) None() bool { return c.Kind == "" || c.Kind == KindNone }

// Mediated reports whether spore-net stands between the guest and this network whatever else is asked for. A cni network is
// switched unless a rule, a secret or a published port asks otherwise (Request.Mediated); the rest are always switched.
func (c Choice) Mediated() bool { return c.Kind == KindNAT }

// MayMediate reports whether spore-net may stand between the guest and this network, so that egress rules, secrets and
// published ports can be had on it.
func (c Choice) MayMediate() bool { return c.Kind == KindNAT || c.Kind == KindCNI }
