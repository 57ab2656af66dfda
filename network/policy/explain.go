package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrAddress says that an address to explain cannot be read.
var ErrAddress = errors.New("no such address")

// Explanation is a verdict and how it came about.
type Explanation struct {
	Asked   string  `json:"asked"`
	Verdict Verdict `json:"verdict"`
	Steps   []Step  `json:"steps"`
}

// Step is one question that the policy asked itself, in words.
type Step struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// maxExplained bounds the addresses of a name that are gone through.
const maxExplained = 8

// ExplainAddress says what would become of a flow to address: [tcp://|udp://|icmp://] and an IP address or a name, with or without
// a port. Without a protocol it is TCP, without a port 443. On ports 80 and 443 a guest is supposed to say the name. names may be
// nil: a name's addresses are then not known. An error is ErrAddress: the address cannot be read.
func (p *Policy) ExplainAddress(names *Names, address string) (Explanation, error) {
	q, err := parseQuestion(address)
	if err != nil {
		return Explanation{}, fmt.Errorf("%w: %.200q: %w", ErrAddress, address, err)
	}
	t := &trace{}
	e := Explanation{Asked: q.String()}
	if q.name == "" {
		e.Verdict = p.explainFlow(Flow{q.protocol, netip.AddrPortFrom(q.addr, q.port)}, names, "", t)
	} else {
		e.Verdict = p.explainName(q, names, t)
	}
	e.Steps = t.steps
	return e, nil
}

// explainFlow judges a flow as the stack does, and what is said in it as the proxy does.
func (p *Policy) explainFlow(f Flow, names *Names, name string, t *trace) Verdict {
	v := p.connect(f, names, t)
	if v.Action != Inspect {
		return v
	}
	if name == "" {
		t.say("What must the guest say?", "by TLS or HTTP a name that is allowed and that stands for this address, unless the rule has a port that needs no name")
		return v
	}
	if !hasPort(web, f.Destination.Port()) {
		t.say("What does the guest say?", "supposed is that it says no name")
		return p.named(f, names, "", SpokenOther, t)
	}
	t.say("What does the guest say?", "supposed is "+name+", by TLS or HTTP")
	return p.named(f, names, name, SpokenTLS, t)
}

// explainName judges the question, and then the flow to each address that the name has.
func (p *Policy) explainName(q question, names *Names, t *trace) Verdict {
	if v := p.lookup(q.name, t); v.Action != Allow {
		return v
	}
	addrs := names.Addresses(q.name)
	if len(addrs) == 0 {
		t.say("Which addresses does it have?", "the sandbox has not asked for it in the last minutes; supposed is a public address that no rule names")
		return p.suppose(q, t)
	}
	best := Verdict{}
	for _, addr := range addrs[:min(len(addrs), maxExplained)] {
		t.say("Which addresses does it have?", addr.String())
		v := p.explainFlow(Flow{q.protocol, netip.AddrPortFrom(addr, q.port)}, names, q.name, t)
		if v.Action > best.Action || best.Rule == "" {
			best = v
		}
	}
	return best
}

// suppose judges a flow to a name of which no address is known, as if it had a public one that no rule is about.
func (p *Policy) suppose(q question, t *trace) Verdict {
	f := flowTo(q.protocol, q.port)
	for _, r := range p.denied {
		if r.kind == kindAll && r.covers(q.protocol, q.port) {
			t.denied(r)
			return deniedName(q.name, r)
		}
	}
	if len(p.rules) == 0 {
		return Verdict{Action: Allow, Rule: defaultPublic}
	}
	j := p.judge(q.name, f, &address{}, false)
	for _, r := range p.addresses {
		if r.kind == kindAll && r.covers(q.protocol, q.port) && j.deny == nil {
			t.allowed(r)
			return Verdict{Action: Allow, Rule: r.String()}
		}
	}
	t.judged(q.name, &j)
	switch {
	case j.deny != nil:
		return deniedName(q.name, j.deny)
	case j.allow != nil:
		return Verdict{Action: Allow, Rule: j.allow.String()}
	}
	return unlistedName(q.name, f)
}

// question is an address to explain, taken apart.
type question struct {
	protocol Protocol
	addr     netip.Addr
	name     string // or an address
	port     uint16
}

// parseQuestion reads [tcp://|udp://|icmp://] and ADDRESS, [ADDRESS]:PORT, NAME or NAME:PORT.
func parseQuestion(text string) (question, error) {
	var r Rule
	if len(text) > maxRuleText {
		return question{}, fmt.Errorf("%d bytes, more than %d", len(text), maxRuleText)
	}
	rest, err := r.parseProtocol(text)
	if err != nil {
		return question{}, err
	}
	target, ports, err := splitPorts(rest)
	if err != nil {
		return question{}, err
	}
	q := question{protocol: r.protocol, port: 443}
	if q.protocol == AnyProtocol {
		q.protocol = TCP
	}
	if ports != "" {
		if q.port, err = parsePort(ports); err != nil {
			return question{}, err
		}
	}
	if q.protocol == ICMP {
		if ports != "" {
			return question{}, errors.New("ICMP has no ports")
		}
		q.port = 0
	}
	if q.addr, err = netip.ParseAddr(target); err == nil {
		q.addr = q.addr.Unmap().WithZone("")
		return q, nil
	}
	q.name, err = ruleName(target)
	return q, err
}

// String is the question with everything that was left out.
func (q question) String() string {
	host := q.name
	if host == "" {
		host = prefixText(netip.PrefixFrom(q.addr, q.addr.BitLen()))
	}
	if q.protocol == ICMP {
		return "icmp://" + host
	}
	return fmt.Sprintf("%s://%s:%d", q.protocol, host, q.port)
}

// String is the explanation as lines of text, the verdict last.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", e.Asked)
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "  %s %s\n", s.Question, s.Answer)
	}
	fmt.Fprintf(&b, "%s by %s", e.Verdict.Action, e.Verdict.Rule)
	if e.Verdict.Reason != "" {
		fmt.Fprintf(&b, ": %s", e.Verdict.Reason)
	}
	b.WriteByte('\n')
	if e.Verdict.Remedy != "" {
		fmt.Fprintf(&b, "to have it otherwise: %s\n", e.Verdict.Remedy)
	}
	return b.String()
}
