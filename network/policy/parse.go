package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The bounds of a policy. Each rule is looked at for each new flow.
const (
	maxRules     = 1024
	maxRuleText  = 512
	maxPorts     = 32 // ranges of ports in one rule
	maxRulesFile = 1 << 20
)

// ErrRule says that a rule cannot be read, or could not be enforced. Its text says which, why, and what to write instead.
var ErrRule = errors.New("rule refused")

// refuse is the error for one rule.
func refuse(action Action, text, format string, args ...any) error {
	return fmt.Errorf("%w: %s %.200q: %w", ErrRule, action, text, fmt.Errorf(format, args...))
}

// parseRule reads one rule.
func parseRule(action Action, text string) (*Rule, error) {
	r := &Rule{action: action}
	fail := func(format string, args ...any) (*Rule, error) {
		return nil, refuse(action, text, format, args...)
	}
	if text == "" || len(text) > maxRuleText {
		return fail("%d bytes; a rule has 1 to %d", len(text), maxRuleText)
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return fail("a rule has no blanks in it; several rules are several %s", flagOf(action))
	}
	rest, err := r.parseProtocol(text)
	if err != nil {
		return fail("%w", err)
	}
	target, within, ports, err := split(rest)
	if err != nil {
		return fail("%w", err)
	}
	if r.ports, err = parsePorts(ports); err != nil {
		return fail("%w", err)
	}
	if err := r.parseTarget(target); err != nil {
		return fail("%w", err)
	}
	if err := r.parseWithin(within); err != nil {
		return fail("%w", err)
	}
	if err := r.enforceable(); err != nil {
		return fail("%w", err)
	}
	r.canonical = r.String()
	return r, nil
}

func flagOf(a Action) string { return "--" + a.String() }

// parseProtocol takes "tcp://" off the front.
func (r *Rule) parseProtocol(text string) (rest string, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return text, nil
	}
	switch scheme {
	case "tcp":
		r.protocol = TCP
	case "udp":
		r.protocol = UDP
	case "icmp":
		r.protocol = ICMP
	case "http", "https", "ws", "wss":
		return "", fmt.Errorf("a rule is no URL; write the host alone: %.100q", strings.SplitN(rest, "/", 2)[0])
	default:
		return "", fmt.Errorf("no protocol is called %.16q; there are tcp://, udp:// and icmp://", scheme)
	}
	return rest, nil
}

// split takes a rule apart without judging the parts: TARGET[@CIDR][:PORTS]. IPv6 is in brackets where ports follow.
func split(s string) (target, within, ports string, err error) {
	target = s
	if name, range_, ok := strings.Cut(s, "@"); ok {
		target, s = name, range_
		if within, ports, err = splitPorts(s); err == nil && (target == "" || within == "") {
			err = errors.New("NAME@CIDR lacks one of the two")
		}
		return target, within, ports, err
	}
	target, ports, err = splitPorts(s)
	return target, "", ports, err
}

func splitPorts(s string) (target, ports string, err error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		address, after, ok := strings.Cut(inner, "]")
		if !ok || !strings.Contains(address, ":") {
			return "", "", errors.New("brackets are for an IPv6 address or range: [2001:db8::1]:443")
		}
		if length, found := strings.CutPrefix(after, "/"); found { // [2001:db8::]/32:443
			length, after, found = strings.Cut(length, ":")
			if address += "/" + length; !found {
				return address, "", nil
			}
			after = ":" + after
		}
		if after == "" {
			return address, "", nil
		}
		ports, ok := strings.CutPrefix(after, ":")
		if !ok || ports == "" {
			return "", "", fmt.Errorf("%.32q after the brackets is no port", after)
		}
		return address, ports, nil
	}
	switch strings.Count(s, ":") {
	case 0:
		return s, "", nil
	case 1:
		target, ports, _ = strings.Cut(s, ":")
		if ports == "" {
			return "", "", errors.New("no port after the colon")
		}
		return target, ports, nil
	}
	return s, "", nil // IPv6, or nothing that can be read
}

// parsePorts reads "443", "8000-8100" and lists of those, and puts them in order.
func parsePorts(s string) ([]portRange, error) {
	if s == "" {
		return nil, nil
	}
	var ports []portRange
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := parsePort(first)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if a > b {
			return nil, fmt.Errorf("ports %.16q: write %d-%d", part, b, a)
		}
		if ports = append(ports, portRange{a, b}); len(ports) > maxPorts {
			return nil, fmt.Errorf("more than %d ranges of ports", maxPorts)
		}
	}
	slices.SortFunc(ports, func(a, b portRange) int { return int(a.first) - int(b.first) })
	for i := 1; i < len(ports); i++ {
		if ports[i].first <= ports[i-1].last {
			return nil, fmt.Errorf("port %d is named twice", ports[i].first)
		}
	}
	return ports, nil
}

// parsePort reads a port as decimal digits and nothing else: no sign, no leading zero, not 0.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("%.16q is no port; ports are 1 to 65535, and a-b or a,b for several", s)
	}
	return uint16(n), nil
}

// parseTarget reads what stands before the ports.
func (r *Rule) parseTarget(s string) error {
	suffix, wild := strings.CutPrefix(s, "*.")
	switch {
	case s == "":
		return errors.New("nothing before the port; * is everything")
	case s == "*":
		r.kind = kindAll
		return nil
	case s == "*.*":
		r.kind = kindAnyName
		return nil
	case strings.Contains(s, "/") || strings.Contains(s, ":") || strings.Trim(s, "0123456789.") == "":
		prefix, err := parsePrefix(s)
		r.kind, r.prefix = kindPrefix, prefix
		return err
	case wild:
		r.kind, s = kindSuffix, suffix
	default:
		r.kind = kindName
	}
	if strings.Contains(s, "*") {
		return errors.New("* stands alone, or for whole labels at the front: *.example.org; write several rules")
	}
	var err error
	r.name, err = ruleName(s)
	return err
}

// parsePrefix reads an address or a range, each in the one form that every program reads alike.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			return netip.Prefix{}, fmt.Errorf("%.64q is no IP address: IPv4 is four decimal numbers without leading zeros, IPv6 with a port is in brackets", s)
		case a.Zone() != "":
			return netip.Prefix{}, errors.New("a rule's address has no zone")
		case a.Is4In6():
			return netip.Prefix{}, fmt.Errorf("write %s: it is an IPv4 address", a.Unmap())
		case a.IsUnspecified():
			return netip.Prefix{}, fmt.Errorf("%s is no address of any host: write %s/0, or * for every public address", a, a)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%.64q is no range ADDRESS/LENGTH; a rule is about hosts, not about paths", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("write %s as IPv4", p)
	case p.Masked() != p:
		return netip.Prefix{}, fmt.Errorf("%s has bits set after its length: write %s, or %s for the one address", p, p.Masked(), p.Addr())
	}
	return p, nil
}

// parseWithin reads the range after "@".
func (r *Rule) parseWithin(s string) error {
	if s == "" {
		return nil
	}
	if !r.byName() {
		return errors.New("@ goes with a name: NAME@CIDR")
	}
	if r.action == Deny {
		return errors.New("a denied name is denied at every address: leave out @ and what follows")
	}
	prefix, err := parsePrefix(s)
	if err != nil {
		return err
	}
	if r.within = prefix; prefix.Bits() < minWithin(prefix) {
		return fmt.Errorf("@%s names no private range: it is wider than any; public addresses need no @", prefix)
	}
	return nil
}

// minWithin is the length below which a prefix lies in no special range. Those of fewer bits are beside the point: nobody's name
// stands for a reserved address.
func minWithin(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 8
	}
	return 7
}
