package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"spore/network"
	"spore/network/policy"
)

// Network is how a sandbox is connected, and what it may reach. The zero value is not at all.
type Network struct {
	network.Choice
	MTU     int                 `json:"mtu,omitempty"` // bytes; 0 is the network's own
	DNS     []netip.Addr        `json:"dns,omitempty"` // name servers; none: the network's, or the host's
	Publish []network.Published `json:"publish,omitempty"`
	Rules   policy.Source       `json:"rules,omitzero"` // of egress, as the user wrote them
	Secrets []Secret            `json:"secrets,omitempty"`
}

// Secret is what the guest may use and never sees: it has Placeholder in its environment, and spore-net puts the value in its
// place on the way to Hosts. The value is nowhere in the record.
type Secret struct {
	Name        string   `json:"name"` // of the environment variable
	Hosts       []string `json:"hosts"`
	Source      string   `json:"source"` // "env:VARIABLE", "file:/PATH", or "stdin", which only the first start can read
	Placeholder string   `json:"placeholder"`
}

// Mediated reports whether spore-net stands between the guest and the network.
func (n *Network) Mediated() bool {
	return n.Choice.Mediated() || n.MayMediate() && (len(n.Publish) > 0 || n.ruled() || len(n.Secrets) > 0)
}

// ruled reports whether there are rules of egress.
func (n *Network) ruled() bool { return len(n.Rules.Allow)+len(n.Rules.Deny) > 0 }

// networkChecks are the rules of a Network, in the words of the command line.
var networkChecks = []func(*Network) string{
	func(n *Network) string {
		return unless(n.MayMediate() || !n.ruled(), "--allow, --deny and --rules do not go with --network %s: no rule can be enforced there; use nat, or cni:NAME", n.Choice)
	},
	func(n *Network) string {
		return unless(n.MayMediate() || len(n.Publish) == 0, "--publish does not go with --network %s: use nat, or cni:NAME", n.Choice)
	},
	func(n *Network) string {
		return unless(n.MayMediate() || len(n.Secrets) == 0, "--secret does not go with --network %s: nobody stands there to put it in; use nat, or cni:NAME", n.Choice)
	},
	func(n *Network) string {
		return unless(!n.None() || len(n.DNS) == 0, "--dns needs a --network")
	},
	func(n *Network) string {
		return unless(n.MTU == 0 || n.MTU >= 1280 && n.MTU <= 65535, "--mtu %d: use 1280 to 65535", n.MTU)
	},
	func(n *Network) string {
		p, err := policy.Parse(n.Rules)
		if err != nil {
			return err.Error()
		}
		for _, s := range n.Secrets {
			if err := p.CheckSecret(policy.Secret{Name: s.Name, Hosts: s.Hosts}); err != nil {
				return fmt.Sprintf("--secret %s: %v", s.Name, err)
			}
		}
		return ""
	},
}

// objection is the first thing wrong with n, or "".
func (n *Network) objection() string {
	for _, check := range networkChecks {
		if o := check(n); o != "" {
			return o
		}
	}
	return ""
}

var secretName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// Where a secret's value comes from.
const (
	sourceEnv   = "env:"
	sourceFile  = "file:"
	sourceStdin = "stdin"
)

// ParseSecret reads NAME[=env:VARIABLE|=file:PATH|=-]@HOST[,HOST]. Without a source the value is the environment variable NAME. A
// value cannot be written on the command line, where everybody can read it.
func ParseSecret(s string) (Secret, error) {
	spec, hosts, ok := strings.Cut(s, "@")
	name, source, sourced := strings.Cut(spec, "=")
	if !ok {
		return Secret{}, errors.New("use NAME@HOST, NAME=env:VARIABLE@HOST, NAME=file:PATH@HOST or NAME=-@HOST; the value itself is never written here")
	}
	secret, err := policy.ParseSecret(name + "@" + hosts)
	if err != nil {
		return Secret{}, err
	}
	out := Secret{Name: secret.Name, Hosts: secret.Hosts, Source: sourceEnv + name}
	switch path, isFile := strings.CutPrefix(source, sourceFile); {
	case !sourced:
	case source == "-":
		out.Source = sourceStdin
	case isFile && path != "":
		abs, err := filepath.Abs(path)
		if err != nil {
			return out, err
		}
		out.Source = sourceFile + abs
	case strings.HasPrefix(source, sourceEnv) && secretName.MatchString(source[len(sourceEnv):]):
		out.Source = source
	default:
		return out, fmt.Errorf("%s: its value comes from env:VARIABLE, file:PATH or - (standard input), not from the command line", name)
	}
	var b [12]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	out.Placeholder = "spore-secret-" + hex.EncodeToString(b[:])
	return out, nil
}

// FromStdin reports whether the value is to be read from standard input.
func (s Secret) FromStdin() bool { return s.Source == sourceStdin }

// maxSecret bounds a value in bytes: it has to fit a header.
const maxSecret = 8 << 10

// value reads the secret where it comes from. given are those that were read from standard input.
func (s Secret) value(given map[string]string) (string, error) {
	v, ok := given[s.Name]
	switch path, isFile := strings.CutPrefix(s.Source, sourceFile); {
	case ok:
	case isFile:
		st, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", s.Name, err)
		}
		if st.Size() > maxSecret || !st.Mode().IsRegular() {
			return "", fmt.Errorf("secret %s: %s is no file of at most %d bytes", s.Name, path, maxSecret)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", s.Name, err)
		}
		v = string(b)
	case s.FromStdin():
		return "", fmt.Errorf("secret %s: it came from standard input, which is only there for run: use NAME=file:PATH@HOST", s.Name)
	default:
		variable := strings.TrimPrefix(s.Source, sourceEnv)
		if v, ok = os.LookupEnv(variable); !ok {
			return "", fmt.Errorf("secret %s: the environment variable %s is not set", s.Name, variable)
		}
	}
	if v = strings.TrimRight(v, "\r\n"); v == "" || len(v) > maxSecret || strings.ContainsAny(v, "\r\n\x00") {
		return "", fmt.Errorf("secret %s: it must be one line of 1 to %d bytes", s.Name, maxSecret)
	}
	return v, nil
}

// Placeholders are what the guest has in its environment instead of secrets, as NAME=PLACEHOLDER. A nil n has none.
func (n *Network) Placeholders() []string {
	if n == nil {
		return nil
	}
	var env []string
	for _, s := range n.Secrets {
		env = append(env, s.Name+"="+s.Placeholder)
	}
	return env
}

// Copied is the network of a copy: the same, but a port of the host can lead to one sandbox only, so the copy has whichever is
// free.
func (n *Network) Copied() *Network {
	if n == nil || len(n.Publish) == 0 {
		return n
	}
	out := *n
	out.Publish = nil
	for _, p := range n.Publish {
		p.Host = netip.AddrPortFrom(p.Host.Addr(), 0)
		out.Publish = append(out.Publish, p)
	}
	return &out
}

// KeepPlaceholders gives secrets the placeholders of those of the same name that a guest has in its memory already.
func (n *Network) KeepPlaceholders(had *Network) {
	if n == nil || had == nil {
		return
	}
	for i, s := range n.Secrets {
		for _, old := range had.Secrets {
			if s.Name == old.Name {
				n.Secrets[i].Placeholder = old.Placeholder
			}
		}
	}
}
