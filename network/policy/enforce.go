package policy

import (
	"errors"
	"fmt"
	"strings"
)

// enforceable refuses a rule that says what nobody could hold the guest to.
func (r *Rule) enforceable() error {
	if r.protocol == ICMP && len(r.ports) > 0 {
		return errors.New("ICMP has no ports: leave them out")
	}
	if !r.byName() {
		return nil
	}
	last := r.name[strings.LastIndexByte(r.name, '.')+1:]
	switch last {
	case "localhost":
		return errors.New("localhost is the guest itself, and no rule is asked about that; the host's own addresses are named by address")
	case "onion", "invalid":
		return fmt.Errorf("names below .%s are never resolved (RFC 6761, RFC 7686)", last)
	}
	if r.action == Deny {
		return nil
	}
	switch {
	case r.kind == kindSuffix && r.name == last && !r.within.IsValid():
		return fmt.Errorf("anybody can have a name below .%s: write *.* for every name, or a longer suffix", last)
	case r.protocol == TCP && len(r.ports) == 0:
		return fmt.Errorf("which ports? %s alone is 80 and 443 with the name looked at; tcp://%s:PORT is any protocol on that port", r.bare(), r.bare())
	case r.protocol == UDP && len(r.ports) == 0:
		return fmt.Errorf("which ports? write udp://%s:PORT", r.bare())
	case r.protocol == UDP && hasPort(r.ports, 443):
		return fmt.Errorf("QUIC says the name where it cannot be checked, and many names share one address: programs fall back to TCP, for which write %s; or allow addresses, udp://ADDRESS:443", r.bare())
	case r.kind == kindAnyName && r.protocol == ICMP:
		return errors.New("an address that any name may have is any address: write icmp://*")
	case r.kind == kindAnyName:
		for _, p := range r.ports {
			if r.protocol != AnyProtocol || p.first != p.last || !hasPort(web, p.first) {
				return fmt.Errorf("names are looked at on ports 80 and 443 alone, and an address that any name may have is any address: write *%s", portText(r.ports))
			}
		}
	}
	return nil
}

// bare is the rule's target alone.
func (r *Rule) bare() string {
	return (&Rule{kind: r.kind, name: r.name, prefix: r.prefix, within: r.within}).text()
}

func portText(ports []portRange) string {
	return strings.TrimPrefix((&Rule{ports: ports}).text(), "*")
}

// enforceableTogether refuses rules that cannot be enforced beside one another.
func enforceableTogether(rules []*Rule) error {
	var denied *Rule // any denial
	allowed := false
	for _, r := range rules {
		if r.Allows() {
			allowed = true
		} else {
			denied = r
		}
	}
	switch {
	case allowed || denied == nil:
	case denied.byName():
		return refuse(Deny, denied.text(), "nothing is allowed, so that there is nothing to deny; to reach every other name add --allow '*.*'")
	default:
		return refuse(Deny, denied.text(), "nothing is allowed, so that there is nothing to deny; to reach everything else add --allow '*'")
	}
	for _, d := range rules {
		if d.Allows() || !d.byName() {
			continue
		}
		for _, a := range rules {
			if a.Allows() && !a.byName() && d.overlaps(a) {
				return refuse(Deny, d.text(), "it cannot be held beside --allow %s, by which the guest reaches addresses without saying a name; allow names ('*.*' is every one), or deny the addresses that %s has", a.text(), d.bare())
			}
		}
	}
	return nil
}
