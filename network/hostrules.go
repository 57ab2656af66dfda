package network

import (
	"fmt"
	"net/netip"
	"strings"
)

// tableFamily is the family of the table that a network has in the host's namespace.
func tableFamily(k Kind) string {
	if k == KindInternal {
		return "netdev"
	}
	return "inet"
}

// hostRules is the ruleset of a network in the host's namespace, in a table that is called as its bridge; "" when it has none. A packet
// that another table drops stays dropped: an accept here overrules nobody.
//
//	nat:       a sandbox reaches what the host can reach, but neither the host itself nor its neighbours; nobody begins to talk to it.
//	           What it may ask of the host is DNS, where the host's nameserver is one of its own addresses, and what it was granted.
//	host-only: a sandbox reaches the host by the bridge's addresses, and nothing beyond it.
//	internal:  nothing of the bridge reaches the host at all, of whatever protocol.
func hostRules(net Network, dns []netip.Addr) string {
	var b strings.Builder
	table := tableFamily(net.Kind) + " " + net.Bridge
	if tableless(net.Kind) {
		return ""
	}
	// both made and removed, so that it is replaced whether it is there or not
	fmt.Fprintf(&b, "table %s\ndelete table %s\ntable %s {\n", table, table, table)
	switch net.Kind {
	case KindNAT:
		writeNATInput(&b, net.Bridge, dns)
		writeNATForward(&b, net)
	case KindHostOnly:
		writeHostOnly(&b, net)
	case KindInternal:
		fmt.Fprintf(&b, "\tchain input {\n\t\ttype filter hook ingress device %q priority 0; policy drop;\n\t\tcounter drop\n\t}\n", net.Bridge)
	}
	b.WriteString("}\n")
	return b.String()
}

// tableless reports whether networks of the kind have no table: they are not ours to govern.
func tableless(k Kind) bool { return k == KindBridge || k == KindCNI }

func writeNATInput(b *strings.Builder, bridge string, dns []netip.Addr) {
	b.WriteString("\tset granted_ip {\n\t\ttype ipv4_addr . ipv4_addr;\n\t}\n\tset granted_ip6 {\n\t\ttype ipv6_addr . ipv6_addr;\n\t}\n\n")
	fmt.Fprintf(b, "\tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n\t\tiifname != %q accept\n", bridge)
	b.WriteString("\t\tct state established,related accept\n\t\tip saddr . ip daddr @granted_ip accept\n\t\tip6 saddr . ip6 daddr @granted_ip6 accept\n\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n")
	for _, a := range dns {
		fmt.Fprintf(b, "\t\t%s daddr %s meta l4proto { tcp, udp } th dport 53 accept\n", family(a), a)
	}
	b.WriteString("\t\tcounter reject with icmpx admin-prohibited\n\t}\n")
}

func writeNATForward(b *strings.Builder, net Network) {
	have := map[string]netip.Prefix{}
	for _, p := range net.Subnets {
		have[family(p.Addr())] = p
	}
	fmt.Fprintf(b, "\n\tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n")
	fmt.Fprintf(b, "\t\tiifname %[1]q oifname %[1]q counter reject with icmpx admin-prohibited\n", net.Bridge)
	for _, f := range []string{"ip", "ip6"} {
		if p, ok := have[f]; ok {
			fmt.Fprintf(b, "\t\tiifname %q %s saddr != %s counter drop\n", net.Bridge, f, p)
		} else {
			fmt.Fprintf(b, "\t\tiifname %q meta protocol %s counter drop\n", net.Bridge, f)
		}
	}
	fmt.Fprintf(b, "\t\toifname %[1]q ct state established,related accept\n\t\toifname %[1]q counter drop\n\t}\n", net.Bridge)
	b.WriteString("\n\tchain postrouting {\n\t\ttype nat hook postrouting priority 100; policy accept;\n")
	for _, f := range []string{"ip", "ip6"} {
		if p, ok := have[f]; ok {
			fmt.Fprintf(b, "\t\t%s saddr %s oifname != %q masquerade\n", f, p, net.Bridge)
		}
	}
	b.WriteString("\t}\n")
}

func writeHostOnly(b *strings.Builder, net Network) {
	fmt.Fprintf(b, "\tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n\t\tiifname != %q accept\n", net.Bridge)
	for _, a := range net.Gateways {
		fmt.Fprintf(b, "\t\t%s daddr %s accept\n", family(a), a)
	}
	b.WriteString("\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n\t\tct state established,related accept\n")
	b.WriteString("\t\tcounter drop\n\t}\n")
	fmt.Fprintf(b, "\n\tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n")
	fmt.Fprintf(b, "\t\tiifname %[1]q oifname != %[1]q counter drop\n\t\toifname %[1]q iifname != %[1]q counter drop\n\t}\n", net.Bridge)
}

// family is what nft calls the family of an address.
func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}
