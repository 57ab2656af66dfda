package policy

import (
	"net/netip"
)

// Source is rules as the user wrote them. The zero value is the policy without rules: everything public.
type Source struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
}

// Surroundings is what a policy must know of the place it is used in. The zero value knows nothing of it.
type Surroundings struct {
	// Host is the addresses of the host itself, public ones too.
	Host []netip.Addr
	// Sandboxes is the ranges that other sandboxes have their addresses of.
	Sandboxes []netip.Prefix
}

// Policy is parsed rules in their surroundings. The zero value has no rules.
type Policy struct {
}

// Parse reads rules, and refuses what cannot be read or could not be enforced: its error names the rule, says why, and
// what to write instead.
func Parse(s Source) (*Policy, error) { return &Policy{}, nil }

// ReadSource reads a file of rules: one a line, "allow RULE" or "deny RULE"; "#" begins a comment. The file's name is for errors.
func ReadSource(name string, text []byte) (Source, error) { return Source{}, nil }

// In is the policy in other surroundings.
func (p *Policy) In(s Surroundings) *Policy { return p }

// Connect judges a flow by its destination. names is what the resolver has learnt; nil is nothing.
//
// Allow and Deny are final. After Inspect the connection to the destination must not be made before Named has said Allow
// for what the guest speaks: a name-based rule may allow the flow.
func (p *Policy) Connect(f Flow, names *Names) Verdict { return Verdict{} }

// Named judges a TCP flow that Connect wants inspected, by the name that the guest says in it: the server name of a
// ClientHello or the host of an HTTP request (without a port), "" for none. It is asked again for every further request of
// an HTTP connection. Its verdict is Allow or Deny.
//
// A flow that is SpokenOther is judged by its address alone; a server that speaks first, or a guest that says nothing in the time
// given it, is SpokenOther.
func (p *Policy) Named(f Flow, names *Names, name string, spoken Spoken) Verdict { return Verdict{} }

// Lookup judges whether the guest may have name resolved.
func (p *Policy) Lookup(name string) Verdict { return Verdict{} }

// Alias judges whether an answer may lead over target, the name that a CNAME record gives: it need not be allowed, but must not
// be denied.
func (p *Policy) Alias(target string) Verdict { return Verdict{} }

// Answer judges whether the guest may be told that name, which Lookup has allowed, stands for addr.
func (p *Policy) Answer(name string, addr netip.Addr) Verdict { return Verdict{} }
