package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// dialLimit is how long a connection is waited for that ought to come about; silence is how long one that ought not to.
const (
	dialLimit = 20 * time.Second
	silence   = 1500 * time.Millisecond
)

// within does something in a namespace; "" is the host's.
func within(t *testing.T, ns string, do func() error) {
	t.Helper()
	if ns != "" {
		inner := do
		do = func() error { return inNetNS(ns, inner) }
	}
	if err := do(); err != nil {
		t.Fatal(err)
	}
}

// greet answers every TCP connection to an address in a namespace with who is seen to call. Without a host it is all addresses of both
// families, each asked for by name: what Go makes of "tcp" depends on the namespace that the process began in.
func greet(t *testing.T, ns, address string) {
	t.Helper()
	if address[0] == ':' {
		greetOn(t, ns, "tcp4", "0.0.0.0"+address)
		greetOn(t, ns, "tcp6", "[::]"+address)
		return
	}
	greetOn(t, ns, "tcp", address)
}

func greetOn(t *testing.T, ns, proto, address string) {
	t.Helper()
	var l net.Listener
	within(t, ns, func() (err error) {
		l, err = net.Listen(proto, address)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// call connects from a namespace and returns what the other side says.
func call(ns, address string, limit time.Duration) (string, error) {
	var c net.Conn
	dial := func() (err error) {
		c, err = (&net.Dialer{Timeout: limit}).Dial("tcp", address)
		return err
	}
	var err error
	if ns == "" {
		err = dial()
	} else {
		err = inNetNS(ns, dial)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// scratchNetNS is a namespace of the test's own.
func scratchNetNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := makeNetNS(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeNetNS(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// configure gives an interface addresses and brings it up, in the thread's namespace.
func configure(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := setSysctl("ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addresses {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: 0x02}); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s on %s: %w", a, name, err)
		}
	}
	return nil
}

// defaultRoutes sends all else to the gateways.
func defaultRoutes(gateways ...string) error {
	for _, g := range gateways {
		p := netip.PrefixFrom(unspecified(netip.PrefixFrom(netip.MustParseAddr(g), 0)), 0)
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: net.IP(addr(g))}); err != nil {
			return err
		}
	}
	return nil
}

// world is a namespace beyond the host: 198.51.100.2 and 2001:db8:51::2, where the host is ...1. It has the host for its router.
func world(t *testing.T) string {
	t.Helper()
	ns := scratchNetNS(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "sporetest0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "sporetest1"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("sporetest0"); err == nil {
			netlink.LinkDel(link)
		}
	})
	peer, err := netlink.LinkByName("sporetest1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := netlink.LinkSetNsFd(peer, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	within(t, "", func() error { return configure("sporetest0", "198.51.100.1/24", "2001:db8:51::1/64") })
	within(t, ns, func() error {
		return errors.Join(configure("sporetest1", "198.51.100.2/24", "2001:db8:51::2/64"), defaultRoutes("198.51.100.1", "2001:db8:51::1"))
	})
	return ns
}

// From nat the world is reached under the host's address; neither the host nor a neighbour is, and nobody reaches in (NET-06).
func TestNET06NATReaches(t *testing.T) {
	n := testNetworks(t)
	if err := os.WriteFile(n.cfg.resolvConf[0], []byte("nameserver 198.51.100.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := world(t)
	a, b := mustAttach(t, n, Request{Choice: Choice{Kind: KindNAT}}), mustAttach(t, n, Request{Choice: Choice{Kind: KindNAT}})
	greet(t, w, ":8080")
	greet(t, "", ":18080")
	greet(t, "", "198.51.100.1:53")
	greet(t, b.NetNS, ":8080")
	for _, tr := range []struct{ name, from, to, seen string }{
		{"the world", a.NetNS, "198.51.100.2:8080", "198.51.100.1"},
		{"the world by IPv6", a.NetNS, "[2001:db8:51::2]:8080", "2001:db8:51::1"},
		{"the host's name server", a.NetNS, "198.51.100.1:53", own(a, true)},
		{"the host, by the bridge", a.NetNS, a.Gateways[0].String() + ":18080", ""},
		{"the host, by the bridge and IPv6", a.NetNS, "[" + a.Gateways[1].String() + "]:18080", ""},
		{"the host, by another address", a.NetNS, "198.51.100.1:18080", ""},
		{"the host, by another address and IPv6", a.NetNS, "[2001:db8:51::1]:18080", ""},
		{"a neighbour", a.NetNS, own(b, true) + ":8080", ""},
		{"a neighbour by IPv6", a.NetNS, "[" + own(b, false) + "]:8080", ""},
		{"in from the world", w, own(b, true) + ":8080", ""},
		{"in from the world by IPv6", w, "[" + own(b, false) + "]:8080", ""},
	} {
		t.Run(tr.name, func(t *testing.T) {
			limit := dialLimit
			if tr.seen == "" {
				limit = silence
			}
			got, err := call(tr.from, tr.to, limit)
			if got != tr.seen || (err == nil) != (tr.seen != "") {
				t.Errorf("got %q, %v; want %q", got, err, tr.seen)
			}
		})
	}
	// what a rule names is let through, to that sandbox alone, and survives new rules
	if err := n.Grant(context.Background(), a.Sandbox, []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:51::1")}); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		for _, to := range []string{"198.51.100.1:18080", "[2001:db8:51::1]:18080"} {
			if got, err := call(a.NetNS, to, dialLimit); err != nil {
				t.Errorf("granted, round %d, %s: %q, %v", round, to, got, err)
			}
			if got, err := call(b.NetNS, to, silence); err == nil {
				t.Errorf("granted to another, %s: %q", to, got)
			}
		}
		net, err := n.load(Choice{Kind: KindNAT})
		if err == nil {
			err = deleteTable(context.Background(), "inet", net.Bridge) // as a restart of the host's firewall does
		}
		if err == nil {
			err = n.Detach(context.Background(), mustAttach(t, n, Request{Choice: Choice{Kind: KindNAT}}).Sandbox)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// a neighbour is not reached by way of the gateway either
	within(t, a.NetNS, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(netip.MustParseAddr(own(b, true)), 32)), Gw: a.Gateways[0].AsSlice()})
	})
	if got, err := call(a.NetNS, own(b, true)+":8080", silence); err == nil {
		t.Errorf("by way of the gateway: %q", got)
	}
}

// A fresh attachment with the addresses of an old one is reached at once: the host has forgotten the old one's MAC.
func TestNextHasTheAddress(t *testing.T) {
	n := testNetworks(t)
	ctx := context.Background()
	host := Choice{Kind: KindHostOnly}
	one := netip.MustParsePrefix("198.18.77.0/29")
	if _, err := n.Create(ctx, host, Options{Subnets: []netip.Prefix{one}, Ranges: []AddrRange{{one.Addr().Next().Next(), one.Addr().Next().Next()}}}); err != nil {
		t.Fatal(err)
	}
	keep := mustAttach(t, n, Request{Choice: Choice{KindInternal, "other"}})
	defer n.Detach(ctx, keep.Sandbox)
	for range 3 {
		a := mustAttach(t, n, Request{Choice: host})
		g := newGuest(t, a)
		greet(t, g, ":8080")
		if got, err := call("", own(a, true)+":8080", dialLimit); err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		a.Tap.Close()
		if err := n.Detach(ctx, a.Sandbox); err != nil {
			t.Fatal(err)
		}
	}
}

// newGuest is a namespace that plays the guest of a switched attachment: its eth0 is a tap whose frames are carried to and from the
// attachment's, as a VMM does. It returns the namespace's path.
func newGuest(t *testing.T, a *Attachment) string {
	t.Helper()
	ns := scratchNetNS(t)
	var tap *os.File
	within(t, ns, func() (err error) {
		if tap, err = makeTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, net.HardwareAddr(a.MAC)); err != nil {
			return err
		}
		var list []string
		for _, p := range a.Addresses {
			list = append(list, p.String())
		}
		return configure("eth0", list...)
	})
	done := make(chan struct{}, 2)
	carry := func(from, to *os.File) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 70<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
				return
			}
		}
	}
	go carry(a.Tap, tap)
	go carry(tap, a.Tap)
	t.Cleanup(func() {
		a.Tap.Close()
		tap.Close()
		<-done
		<-done
	})
	return ns
}

// Switched guests, played from end to end: who reaches whom (NET-06).
func TestNET06SwitchedReaches(t *testing.T) {
	n := testNetworks(t)
	w := world(t)
	greet(t, w, ":8080")
	greet(t, "", ":18080")
	guest := map[string]string{}
	place := map[string]*Attachment{}
	for _, g := range []struct {
		name   string
		choice Choice
	}{{"a1", Choice{KindInternal, "a"}}, {"a2", Choice{KindInternal, "a"}}, {"b1", Choice{KindInternal, "b"}}, {"h1", Choice{Kind: KindHostOnly}}, {"h2", Choice{Kind: KindHostOnly}}} {
		place[g.name] = mustAttach(t, n, Request{Choice: g.choice})
		guest[g.name] = newGuest(t, place[g.name])
		greet(t, guest[g.name], ":8080")
	}
	hostOnly, _, err := n.Inspect(Choice{Kind: KindHostOnly})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a1", "h1"} { // guests who try whatever they can
		within(t, guest[name], func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			_, everything, _ := net.ParseCIDR("0.0.0.0/0")
			route := &netlink.Route{Dst: everything, LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK}
			if name == "h1" {
				route = &netlink.Route{Dst: everything, Gw: hostOnly.Gateways[0].AsSlice()}
			}
			return netlink.RouteAdd(route)
		})
	}
	link, err := netlink.LinkByName(hostOnly.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	bridgeLL := "fe80::1"
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			bridgeLL = a.IP.String()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []struct {
		name, from, to string
		ok             bool
	}{
		{"same segment", "a1", own(place["a2"], true) + ":8080", true},
		{"same segment by IPv6", "a1", "[" + own(place["a2"], false) + "]:8080", true},
		{"another segment", "a1", own(place["b1"], true) + ":8080", false},
		{"the host from a segment", "a1", "198.51.100.1:18080", false},
		{"the world from a segment", "a1", "198.51.100.2:8080", false},
		{"the host", "h1", hostOnly.Gateways[0].String() + ":18080", true},
		{"the host by IPv6", "h1", "[" + hostOnly.Gateways[1].String() + "]:18080", true},
		{"the host's link-local address", "h1", "[" + bridgeLL + "%eth0]:18080", false},
		{"a neighbour of host-only", "h1", own(place["h2"], true) + ":8080", true},
		{"a segment from host-only", "h1", own(place["a1"], true) + ":8080", false},
		{"another address of the host's", "h1", "198.51.100.1:18080", false},
		{"the world from host-only", "h1", "198.51.100.2:8080", false},
		{"metadata", "h1", "169.254.169.254:80", false},
		{"from the host", "", own(place["h1"], true) + ":8080", true},
		{"from the host into a segment", "", own(place["a1"], true) + ":8080", false},
	} {
		t.Run(tr.name, func(t *testing.T) {
			limit := dialLimit
			if !tr.ok {
				limit = silence
			}
			if got, err := call(guest[tr.from], tr.to, limit); (err == nil) != tr.ok {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
