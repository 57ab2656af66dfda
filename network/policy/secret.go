package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrSecret says that a secret cannot be read, or that its host is not allowed.
var ErrSecret = errors.New("secret refused")

// maxHosts bounds the hosts of one secret.
const maxHosts = 32

// Secret is where a secret may be used; its value is elsewhere.
type Secret struct {
	// Name is the environment variable that holds the placeholder in the guest.
	Name string `json:"name"`
	// Hosts is names or *.suffixes, canonical.
	Hosts []string `json:"hosts"`
}

// ParseSecret reads NAME@host[,host]. A host is a name or *.suffix, without a port: a secret is sent by TLS to a server that has
// proven to be that host, at any port where the policy allows it.
func ParseSecret(text string) (Secret, error) {
	name, hosts, ok := strings.Cut(text, "@")
	if !ok || !isVariable(name) {
		return Secret{}, fmt.Errorf("%w: %.64q: write NAME@HOST, NAME like a variable of the environment's; the value comes from elsewhere", ErrSecret, name)
	}
	s := Secret{Name: name}
	for host := range strings.SplitSeq(hosts, ",") {
		canonical, err := secretHost(host)
		if err != nil {
			return Secret{}, fmt.Errorf("%w: %s: host %.100q: %w", ErrSecret, name, host, err)
		}
		if s.Hosts = append(s.Hosts, canonical); len(s.Hosts) > maxHosts {
			return Secret{}, fmt.Errorf("%w: %s: more than %d hosts", ErrSecret, name, maxHosts)
		}
	}
	return s, nil
}

func isVariable(s string) bool {
	if s == "" || len(s) > 128 || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// secretHost is a host in canonical form.
func secretHost(s string) (string, error) {
	if len(s) > maxRuleText || strings.Contains(s, ":") {
		return "", errors.New("a secret's host has no port and is no address")
	}
	suffix, wild := strings.CutPrefix(s, "*.")
	name, err := ruleName(suffix)
	switch {
	case strings.Contains(suffix, "*"):
		return "", errors.New("a secret goes to a name, or to *.example.org and what is below")
	case err != nil:
		return "", err
	case wild && !strings.Contains(name, "."):
		return "", fmt.Errorf("anybody can have a name below .%s", name)
	case wild:
		return "*." + name, nil
	}
	return name, nil
}

// Covers reports whether the secret may be sent to host, a name as the guest says it.
func (s Secret) Covers(host string) bool {
	name, err := CanonicalName(host)
	if err != nil {
		return false
	}
	for _, h := range s.Hosts {
		r := hostRule(h)
		if r.about(name) {
			return true
		}
	}
	return false
}

// hostRule is a secret's host as a rule.
func hostRule(host string) Rule {
	if suffix, wild := strings.CutPrefix(host, "*."); wild {
		return Rule{action: Allow, kind: kindSuffix, name: suffix}
	}
	return Rule{action: Allow, kind: kindName, name: host}
}

// CheckSecret refuses a secret for a host that the policy does not allow at port 443, where it would never be used.
func (p *Policy) CheckSecret(s Secret) error {
	for _, host := range s.Hosts {
		if len(p.rules) > 0 && !p.allowsHost(hostRule(host)) {
			return fmt.Errorf("%w: %s: no rule allows %s at port 443, so that it could never be sent: add --allow %s", ErrSecret, s.Name, host, host)
		}
	}
	return nil
}

// allowsHost reports whether a TLS connection to every name of host, or but for some that are denied, is allowed.
func (p *Policy) allowsHost(host Rule) bool {
	allowed := false
	for _, r := range p.rules {
		switch {
		case !r.covers(TCP, 443):
		case r.Allows() && (r.kind == kindAll || r.includes(&host)):
			allowed = true
		case !r.Allows() && (r.kind == kindAll || r.includes(&host)):
			return false
		}
	}
	return allowed
}

// includes reports whether the rule is about every name that other is about.
func (r *Rule) includes(other *Rule) bool {
	if other.kind == kindName {
		return r.about(other.name)
	}
	return r.kind == kindAnyName || r.kind == kindSuffix && (r.name == other.name || r.about(other.name))
}

// flowTo is a flow by which a name is judged when nothing is known of its addresses.
func flowTo(protocol Protocol, port uint16) Flow {
	return Flow{protocol, netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
}
