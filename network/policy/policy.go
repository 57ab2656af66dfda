package policy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// Source is rules as the user wrote them. The zero value is the policy without rules: everything public.
type Source struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
}

// Surroundings is what a policy must know of the place it is used in. The zero value knows nothing of it.
type Surroundings struct {
	// Host is the addresses of the host itself, public ones too.
	Host []netip.Addr `json:"host,omitempty"`
	// Sandboxes is the ranges that other sandboxes have their addresses of.
	Sandboxes []netip.Prefix `json:"sandboxes,omitempty"`
	// NAT64 is ranges of 96 bits, besides 64:ff9b::/96, in which the host's network translates to IPv4 (RFC 6052).
	NAT64 []netip.Prefix `json:"nat64,omitempty"`
}

// Policy is parsed rules in their surroundings. The zero value has no rules.
type Policy struct {
	rules     []*Rule
	addresses []*Rule            // allowing, not by name
	denied    []*Rule            // denying, not by name
	exact     map[string][]*Rule // by name: those of kindName
	suffixes  map[string][]*Rule // by suffix
	anyName   []*Rule
	denyNames bool // a rule denies by name
	around    Surroundings
}

// Parse reads rules, and refuses what cannot be read or could not be enforced: its error is ErrRule, names the rule, and says why and
// what to write instead.
func Parse(s Source) (*Policy, error) {
	if n := len(s.Allow) + len(s.Deny); n > maxRules {
		return nil, fmt.Errorf("%w: %d rules, at most %d", ErrRule, n, maxRules)
	}
	p := &Policy{exact: map[string][]*Rule{}, suffixes: map[string][]*Rule{}}
	for _, text := range s.Allow {
		r, err := parseRule(Allow, text)
		if err != nil {
			return nil, err
		}
		p.add(r)
	}
	for _, text := range s.Deny {
		r, err := parseRule(Deny, text)
		if err != nil {
			return nil, err
		}
		p.add(r)
	}
	if err := enforceableTogether(p.rules); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Policy) add(r *Rule) {
	p.rules = append(p.rules, r)
	p.denyNames = p.denyNames || r.byName() && !r.Allows()
	switch {
	case r.kind == kindName:
		p.exact[r.name] = append(p.exact[r.name], r)
	case r.kind == kindSuffix:
		p.suffixes[r.name] = append(p.suffixes[r.name], r)
	case r.kind == kindAnyName:
		p.anyName = append(p.anyName, r)
	case r.Allows():
		p.addresses = append(p.addresses, r)
	default:
		p.denied = append(p.denied, r)
	}
}

// Rules are the policy's rules in the order they were given, those that allow first. They must not be changed.
func (p *Policy) Rules() []*Rule { return slices.Clone(p.rules) }

// NamesAddress reports whether a rule that allows is about the address alone, by itself or as where a name may lead (NAME@ADDRESS).
func (p *Policy) NamesAddress(a netip.Addr) bool {
	one := netip.PrefixFrom(a, a.BitLen())
	return slices.ContainsFunc(p.rules, func(r *Rule) bool { return r.Allows() && (r.prefix == one || r.within == one) })
}

// In is the policy in other surroundings.
func (p *Policy) In(s Surroundings) *Policy {
	moved := *p
	moved.around = Surroundings{}
	for _, a := range s.Host {
		moved.around.Host = append(moved.around.Host, a.Unmap().WithZone(""))
	}
	for _, prefix := range s.Sandboxes {
		moved.around.Sandboxes = append(moved.around.Sandboxes, prefix.Masked())
	}
	for _, prefix := range s.NAT64 {
		if prefix.Bits() == 96 && prefix.Addr().Is6() {
			moved.around.NAT64 = append(moved.around.NAT64, prefix.Masked())
		}
	}
	return &moved
}

// ReadSource reads a file of rules: one a line, "allow RULE" or "deny RULE"; "#" begins a comment. The file's name is for errors. The
// rules themselves are for Parse to read.
func ReadSource(name string, text []byte) (Source, error) {
	var s Source
	if len(text) > maxRulesFile || !utf8.Valid(text) {
		return s, fmt.Errorf("%w: %s: %d bytes; a file of rules is UTF-8 and has at most %d", ErrRule, name, len(text), maxRulesFile)
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		rule, _, _ := strings.Cut(string(line), "#")
		switch words := strings.Fields(rule); {
		case len(words) == 0:
		case len(words) == 2 && words[0] == "allow":
			s.Allow = append(s.Allow, words[1])
		case len(words) == 2 && words[0] == "deny":
			s.Deny = append(s.Deny, words[1])
		default:
			return Source{}, fmt.Errorf("%w: %s:%d: %.100q: write allow RULE or deny RULE", ErrRule, name, number, strings.TrimSpace(rule))
		}
	}
	return s, nil
}

// And is the rules of both.
func (s Source) And(other Source) Source {
	return Source{slices.Concat(s.Allow, other.Allow), slices.Concat(s.Deny, other.Deny)}
}

// Empty reports whether there are no rules.
func (s Source) Empty() bool { return len(s.Allow)+len(s.Deny) == 0 }
