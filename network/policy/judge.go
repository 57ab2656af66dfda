package policy

import (
	"iter"
	"net/netip"
	"strings"
)

// The names of the defaults in verdicts, besides "default:" and the word of a special range.
const (
	defaultPublic   = "default:public"   // no rules: what is public is allowed
	defaultUnlisted = "default:unlisted" // there are rules, and none allows it
	defaultName     = "default:name"     // what was said is no name, not the address's, or nothing
	defaultInvalid  = "default:invalid"  // no flow that could be
)

// Connect judges a flow by its destination. names is what the resolver has learnt; nil is nothing.
//
// Allow and Deny are final. After Inspect the connection to the destination must not be made before Named has said Allow
// for what the guest speaks: a name-based rule may allow the flow. Only TCP is inspected.
func (p *Policy) Connect(f Flow, names *Names) Verdict { return p.connect(f, names, nil) }

func (p *Policy) connect(f Flow, names *Names, t *trace) Verdict {
	at := p.look(f.Destination.Addr())
	if v, final := p.byAddress(f, &at, t); final {
		return v
	}
	return p.byNames(f, &at, names, t)
}

// byAddress is the part of a judgement that needs no name. Its verdict is final if it says so; otherwise rules by name may allow.
func (p *Policy) byAddress(f Flow, at *address, t *trace) (v Verdict, final bool) {
	port := f.Destination.Port()
	if !f.valid() {
		return Verdict{Rule: defaultInvalid, Reason: "a flow is TCP or UDP to an address and a port, or ICMP to an address"}, true
	}
	t.address(at)
	for _, r := range p.denied {
		if r.covers(f.Protocol, port) && (r.kind == kindAll || at.in(r.prefix)) {
			t.denied(r)
			return Verdict{Rule: r.String(), Reason: flowText(f) + " is denied by that rule"}, true
		}
	}
	if len(p.rules) == 0 {
		if at.count > 0 {
			return specialVerdict(f, at), true
		}
		t.public()
		return Verdict{Action: Allow, Rule: defaultPublic}, true
	}
	for _, r := range p.addresses {
		if !r.covers(f.Protocol, port) || r.kind == kindPrefix && !r.prefix.Contains(at.addr) {
			continue
		}
		if r.kind == kindAll && at.count > 0 || r.kind == kindPrefix && !at.namedBy(r.prefix) {
			t.tooWide(r, at)
			continue
		}
		t.allowed(r)
		if p.denyNames && f.Protocol == TCP {
			return Verdict{Action: Inspect, Rule: r.String()}, true
		}
		return Verdict{Action: Allow, Rule: r.String()}, true
	}
	t.noAddressRule(p)
	return Verdict{}, false
}

// valid reports whether there can be such a flow.
func (f Flow) valid() bool {
	switch f.Protocol {
	case TCP, UDP:
		return f.Destination.Port() != 0 && isDestination(f.Destination.Addr())
	case ICMP:
		return isDestination(f.Destination.Addr())
	}
	return false
}

// isDestination reports whether an address can be one: the unspecified address would be the host itself on Linux, under any rule.
func isDestination(a netip.Addr) bool { return a.IsValid() && !a.Unmap().IsUnspecified() }

// byNames judges a flow by the names that its destination stands for.
func (p *Policy) byNames(f Flow, at *address, names *Names, t *trace) Verdict {
	var buffer [8]string
	known := names.appendOf(buffer[:0], at.addr)
	t.known(known)
	var allow, elsewhere *Rule
	for _, name := range known {
		j := p.judge(name, f, at, false)
		t.judged(name, &j)
		if j.deny != nil && f.Protocol != TCP {
			return Verdict{Rule: j.deny.String(), Reason: at.addr.String() + " stands for " + name + ", which that rule denies"}
		}
		if j.deny == nil && j.allow != nil && allow == nil {
			allow = j.allow
		}
		if elsewhere == nil {
			elsewhere = j.elsewhere
		}
	}
	switch {
	case allow != nil && f.Protocol == TCP:
		return Verdict{Action: Inspect, Rule: allow.String()}
	case allow != nil:
		return Verdict{Action: Allow, Rule: allow.String()}
	case at.count > 0:
		return specialVerdict(f, at)
	}
	return unlistedVerdict(f, at, known)
}

// judgement is what the rules say of a name for a flow.
type judgement struct {
	deny      *Rule // denies it
	allow     *Rule // allows it, at this address
	elsewhere *Rule // allows the name, but not at an address like this
}

// judge judges a name that the flow's destination stands for, or is said to. With byAddress only rules count that need no
// name said.
func (p *Policy) judge(name string, f Flow, at *address, byAddress bool) (j judgement) {
	port := f.Destination.Port()
	for r := range p.about(name) {
		switch {
		case !r.covers(f.Protocol, port):
		case !r.Allows():
			j.deny = r
		case byAddress && !r.byAddress(f.Protocol, port):
		case at.count == 0 || r.within.IsValid() && r.within.Contains(at.addr) && at.namedBy(r.within):
			if j.allow == nil {
				j.allow = r
			}
		default:
			j.elsewhere = r
		}
	}
	return j
}

// about gives the rules that are about name, which is canonical.
func (p *Policy) about(name string) iter.Seq[*Rule] {
	return func(yield func(*Rule) bool) {
		for _, r := range p.exact[name] {
			if !yield(r) {
				return
			}
		}
		if len(p.suffixes) > 0 {
			for rest := name; ; {
				_, after, more := strings.Cut(rest, ".")
				if !more {
					break
				}
				for _, r := range p.suffixes[after] {
					if !yield(r) {
						return
					}
				}
				rest = after
			}
		}
		for _, r := range p.anyName {
			if r.about(name) && !yield(r) {
				return
			}
		}
	}
}

// Named judges a TCP flow that Connect wants inspected, by the name that the guest says in it: the server name of a
// ClientHello or the host of an HTTP request (without a port), "" for none. It is asked again for every further request of
// an HTTP connection, but need not be for a name that it has allowed on the same connection: an address that the connection was made to
// stays the name's as long as that lasts. Its verdict is Allow or Deny.
//
// A flow that is SpokenOther is judged by its address alone; a server that speaks first, or a guest that says nothing in the time
// given it, is SpokenOther. So is TLS without a server name.
func (p *Policy) Named(f Flow, names *Names, name string, spoken Spoken) Verdict {
	return p.named(f, names, name, spoken, nil)
}

func (p *Policy) named(f Flow, names *Names, name string, spoken Spoken, t *trace) Verdict {
	at := p.look(f.Destination.Addr())
	v, final := p.byAddress(f, &at, nil) // Connect has noted this
	if final && v.Action != Inspect {
		return v
	}
	if spoken == SpokenTLSEncrypted {
		return Verdict{Rule: defaultName, Reason: "the ClientHello is encrypted (ECH), so that it cannot be seen which name is meant",
			Remedy: "turn Encrypted Client Hello off in the program"}
	}
	if final { // an address is allowed beside names that are denied
		canonical, err := CanonicalName(name)
		if j := p.judge(canonical, f, &at, false); err == nil && j.deny != nil {
			return deniedName(canonical, j.deny)
		}
		return Verdict{Action: Allow, Rule: v.Rule}
	}
	if spoken == SpokenOther || name == "" {
		return p.unnamed(f, &at, names, spoken)
	}
	canonical, err := CanonicalName(name)
	if err != nil {
		return Verdict{Rule: defaultName, Reason: "what the guest says by " + spoken.String() + " is no host name, and no rule allows the address"}
	}
	j := p.judge(canonical, f, &at, false)
	switch {
	case j.deny != nil:
		return deniedName(canonical, j.deny)
	case j.allow == nil && j.elsewhere == nil:
		return unlistedName(canonical, f)
	case !names.stands(canonical, at.addr):
		t.stands(canonical, at.addr, false)
		return Verdict{Rule: defaultName, Reason: "the sandbox's name server did not say that " + canonical + " is at " + at.addr.String() + ", or too long ago",
			Remedy: "resolve the name with the sandbox's own name server"}
	case j.allow == nil:
		return specialVerdict(f, &at)
	}
	t.stands(canonical, at.addr, true)
	return Verdict{Action: Allow, Rule: j.allow.String()}
}

// unnamed judges a TCP flow in which no name is said, by the names that its address stands for: all of them, since any may be meant.
func (p *Policy) unnamed(f Flow, at *address, names *Names, spoken Spoken) Verdict {
	var buffer [8]string
	known := names.appendOf(buffer[:0], at.addr)
	var allow, must *Rule
	for _, name := range known {
		j := p.judge(name, f, at, true)
		if j.deny != nil {
			return deniedName(name, j.deny)
		}
		if allow == nil {
			allow = j.allow
		}
		if must == nil {
			must = p.judge(name, f, at, false).allow
		}
	}
	switch {
	case allow != nil:
		return Verdict{Action: Allow, Rule: allow.String()}
	case must != nil:
		return mustSay(f, must, spoken)
	case at.count > 0:
		return specialVerdict(f, at)
	}
	return unlistedVerdict(f, at, known)
}

// Lookup judges whether the guest may have name resolved.
func (p *Policy) Lookup(name string) Verdict { return p.lookup(name, nil) }

func (p *Policy) lookup(name string, t *trace) Verdict {
	canonical, err := CanonicalName(name)
	if err != nil {
		return Verdict{Rule: defaultName, Reason: "that is no host name"}
	}
	if len(p.rules) == 0 {
		t.public()
		return Verdict{Action: Allow, Rule: defaultPublic}
	}
	allow, deny := p.resolves(canonical)
	// A service's name is part of what it is a service of, as far as asking goes.
	if owner, ok := isService(canonical); ok && allow == nil && deny == nil {
		allow, deny = p.resolves(owner)
	}
	t.lookedUp(canonical, allow, deny)
	switch {
	case deny != nil:
		return deniedName(canonical, deny)
	case allow != nil:
		return Verdict{Action: Allow, Rule: allow.String()}
	}
	return Verdict{Rule: defaultUnlisted, Reason: "no rule allows " + canonical, Remedy: "--allow " + canonical}
}

// resolves finds a rule by which name may be asked for, and one by which it may not: a denial of all its ports.
func (p *Policy) resolves(name string) (allow, deny *Rule) {
	for r := range p.about(name) {
		switch {
		case r.Allows() && allow == nil:
			allow = r
		case !r.Allows() && r.protocol == AnyProtocol && len(r.ports) == 0:
			deny = r
		}
	}
	// Whoever may reach every public address has a name server among them.
	for _, r := range p.addresses {
		if allow == nil && (r.kind == kindAll || r.prefix.Bits() == 0) {
			allow = r
		}
	}
	return allow, deny
}

// Alias judges whether an answer may lead over target, the name that a CNAME record gives: it need not be allowed, but must not
// be denied.
func (p *Policy) Alias(target string) Verdict {
	canonical, err := CanonicalName(target)
	if err != nil {
		return Verdict{Rule: defaultName, Reason: "the answer leads over what is no host name"}
	}
	if _, deny := p.resolves(canonical); deny != nil {
		return deniedName(canonical, deny)
	}
	return Verdict{Action: Allow, Rule: defaultPublic}
}

// Answer judges whether the guest may be told that name, which Lookup has allowed, stands for addr: if no flow there could be allowed, it
// may not (an answer into a private network is how DNS rebinding begins).
func (p *Policy) Answer(name string, addr netip.Addr) Verdict {
	canonical, err := CanonicalName(name)
	if err != nil || !isDestination(addr) {
		return Verdict{Rule: defaultInvalid, Reason: "that is no host name, or no host's address"}
	}
	at := p.look(addr)
	for _, r := range p.denied {
		if r.protocol == AnyProtocol && len(r.ports) == 0 && (r.kind == kindAll || at.in(r.prefix)) {
			return Verdict{Rule: r.String(), Reason: at.addr.String() + " is denied by that rule"}
		}
	}
	if at.count == 0 {
		return Verdict{Action: Allow, Rule: defaultPublic}
	}
	for _, r := range p.addresses {
		if r.kind == kindPrefix && r.prefix.Contains(at.addr) && at.namedBy(r.prefix) {
			return Verdict{Action: Allow, Rule: r.String()}
		}
	}
	for r := range p.about(canonical) {
		if r.within.IsValid() && r.within.Contains(at.addr) && at.namedBy(r.within) {
			return Verdict{Action: Allow, Rule: r.String()}
		}
	}
	return rebound(canonical, &at)
}
