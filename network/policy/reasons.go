package policy

import "net/netip"

// flowText is a flow as a rule would name it: "192.0.2.1:443", "udp://[2001:db8::1]:53", "icmp://192.0.2.1".
func flowText(f Flow) string {
	a := f.Destination.Addr().Unmap().WithZone("")
	switch f.Protocol {
	case TCP:
		return netip.AddrPortFrom(a, f.Destination.Port()).String()
	case UDP:
		return "udp://" + netip.AddrPortFrom(a, f.Destination.Port()).String()
	}
	return "icmp://" + prefixText(netip.PrefixFrom(a, a.BitLen()))
}

// specialVerdict denies what only a rule that names it could allow.
func specialVerdict(f Flow, at *address) Verdict {
	s := at.worst()
	return Verdict{Rule: "default:" + string(s.class), Reason: at.blame(s), Remedy: "--allow " + flowText(f)}
}

// blame says why a special range is around the address.
func (at *address) blame(s special) string {
	text := at.addr.String() + " is " + words[s.class]
	if s.inner.IsValid() {
		text = at.addr.String() + " has " + s.inner.String() + " within, which is " + words[s.class]
	}
	return text + ", and no rule names it"
}

// unlistedVerdict denies what no rule allows.
func unlistedVerdict(f Flow, at *address, known []string) Verdict {
	v := Verdict{Rule: defaultUnlisted, Remedy: "--allow " + flowText(f)}
	if len(known) == 0 {
		v.Reason = "no rule allows " + flowText(f) + ", and the sandbox's name server has not given the address for a name that is allowed"
		return v
	}
	v.Reason = at.addr.String() + " stands for " + known[0] + ", which no rule allows there"
	v.Remedy = "--allow " + namedFlow(known[0], f)
	return v
}

// unlistedName denies a name that was said and that no rule allows.
func unlistedName(name string, f Flow) Verdict {
	return Verdict{Rule: defaultUnlisted, Reason: "no rule allows " + namedFlow(name, f), Remedy: "--allow " + namedFlow(name, f)}
}

// namedFlow is a flow to name as a rule would name it: without a port where names are looked at.
func namedFlow(name string, f Flow) string {
	port := []portRange{{f.Destination.Port(), f.Destination.Port()}}
	switch {
	case f.Protocol == TCP && hasPort(web, f.Destination.Port()):
		return name
	case f.Protocol == TCP:
		return name + portText(port)
	case f.Protocol == UDP && f.Destination.Port() == 443:
		return flowText(f) // by name it would be refused
	case f.Protocol == UDP:
		return "udp://" + name + portText(port)
	}
	return "icmp://" + name
}

func deniedName(name string, r *Rule) Verdict {
	return Verdict{Rule: r.String(), Reason: name + " is denied by that rule"}
}

// mustSay denies a flow whose rule wants a name said.
func mustSay(f Flow, r *Rule, spoken Spoken) Verdict {
	v := Verdict{Rule: defaultName, Reason: "by " + r.String() + " the guest must say by TLS or HTTP which name it means on port " + portText([]portRange{{f.Destination.Port(), f.Destination.Port()}})[1:] + ", and it says none"}
	if spoken == SpokenOther && r.kind != kindAnyName {
		v.Remedy = "--allow tcp://" + r.bare() + portText([]portRange{{f.Destination.Port(), f.Destination.Port()}})
	}
	return v
}

// rebound denies an answer that leads where the name must not.
func rebound(name string, at *address) Verdict {
	s := at.worst()
	return Verdict{Rule: "default:" + string(s.class), Reason: name + " leads to an address that is not public: " + at.blame(s),
		Remedy: "--allow " + name + "@" + prefixText(netip.PrefixFrom(at.addr, at.addr.BitLen()))}
}
