package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/testenv"
)

// veth makes a cable of two interfaces, and takes the other end up.
func veth(c *netlink) error {
	nested := func(kind uint16, value []byte) []byte {
		t := batch{}
		t.add("", 0, 0, nil)
		t.attr(kind, value)
		return t.b[netlinkHeader:]
	}
	var t batch
	peer := append(linkMessage(0, 0, 0), nested(unix.IFLA_IFNAME, []byte("other\x00"))...)
	t.add("make veth", unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkMessage(0, 0, 0))
	t.attr(unix.IFLA_IFNAME, []byte("cable\x00"))
	t.attr(unix.IFLA_LINKINFO, append(nested(unix.IFLA_INFO_KIND, []byte("veth")), nested(unix.IFLA_INFO_DATA, nested(1, peer))...))
	t.add("take the other end up", unix.RTM_NEWLINK, 0, linkMessage(0, unix.IFF_UP, unix.IFF_UP))
	t.attr(unix.IFLA_IFNAME, []byte("other\x00"))
	return c.do(&t)
}

var namespaces = testenv.Need{Name: "netns", Probe: func() error {
	if os.Getuid() != 0 {
		return errors.New("not root")
	}
	return within(func(*netlink) error { return nil })
}}

// within runs f on a thread that has a network namespace of its own, with a cable, both of which end with it.
func within(f func(c *netlink) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no more use to others
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			c, err := openNetlink(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer c.close()
			if err := errors.Join(loopbackUp(), veth(c)); err != nil {
				return err
			}
			return f(c)
		}()
	}()
	return <-done
}

// inNamespace is within for a test, with the cable for the machine's interface.
func inNamespace(t *testing.T, f func(c *netlink, i nic)) {
	t.Helper()
	testenv.Require(t, namespaces)
	err := within(func(c *netlink) error {
		i, err := net.InterfaceByName("cable")
		if err == nil {
			f(c, nic{index: uint32(i.Index), name: i.Name, maxMTU: 65535})
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// shown is what there is of the interface eth0 and of its network, in words.
func shown(t *testing.T) string {
	i, err := net.InterfaceByName(interfaceName)
	if err != nil {
		t.Error(err)
		return ""
	}
	addresses, err := i.Addrs()
	if err != nil {
		t.Error(err)
	}
	s := fmt.Sprintln(i.MTU, i.HardwareAddr, addresses)
	for _, file := range []string{"route", "ipv6_route", "if_inet6", "arp"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, interfaceName) {
				s += strings.Join(strings.Fields(line), " ") + "\n"
			}
		}
	}
	return s
}

func mustParse(t *testing.T, n agent.Network) plan {
	p, err := parseNetwork(&n)
	if err != nil {
		t.Error(err)
	}
	return p
}

// TestNetworkApplied makes an interface one thing and then another, and nothing of the first is left.
func TestNetworkApplied(t *testing.T) {
	first := agent.Network{MAC: "02:00:00:00:00:07", MTU: 1400, Addresses: []string{"10.9.0.2/24", "10.9.0.3/24", "fd09::2/64"}, Gateways: []string{"10.9.0.1", "fe80::1"}}
	second := agent.Network{MAC: "02:00:00:00:00:08", Addresses: []string{"10.8.0.2/32", "fd08::2/128"}, Gateways: []string{"169.254.1.1", "fd08::1"}}
	expect := func(what string, yes, no []string) {
		got := shown(t)
		for _, w := range yes {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in:\n%s", what, w, got)
			}
		}
		for _, w := range no {
			if strings.Contains(got, w) {
				t.Errorf("%s: %q in:\n%s", what, w, got)
			}
		}
	}
	inNamespace(t, func(c *netlink, i nic) {
		for range 2 {
			if err := mustParse(t, first).apply(c, i, false); err != nil {
				t.Error(err)
				return
			}
			i.name = interfaceName
		}
		expect("first", []string{"1400 02:00:00:00:00:07", "10.9.0.2/24", "10.9.0.3/24", "fd09::2/64",
			"eth0 00000000 0100090A 0003", // default by 10.9.0.1
			" fe800000000000000000000000000001 ",
			"fd090000000000000000000000000002 " + twoDigits(i.index) + " 40 00 82", // permanent, no duplicate to look for
		}, nil)
		var t2 batch // a neighbour
		t2.add("add neighbour", unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, append(append([]byte{unix.AF_INET, 0, 0, 0}, native.AppendUint32(nil, i.index)...), 0x80, 0, 0, 0))
		t2.attr(unix.NDA_DST, []byte{10, 9, 0, 9})
		t2.attr(unix.NDA_LLADDR, []byte{2, 0, 0, 0, 0, 9})
		if err := c.do(&t2); err != nil {
			t.Error(err)
		}
		expect("with a neighbour", []string{"10.9.0.9"}, nil)
		for range 2 {
			if err := mustParse(t, second).apply(c, i, true); err != nil {
				t.Error(err)
				return
			}
		}
		expect("second", []string{"02:00:00:00:00:08", "10.8.0.2/32", "fd08::2/128", "eth0 00000000 0101FEA9 0003", " fd080000000000000000000000000001 "},
			[]string{"10.9.", "fd09:", "fd09000", "00090A", "fe800000000000000000000000000001 "})
	})
}

func twoDigits(index uint32) string { return fmt.Sprintf("%02x", index) }

// TestConnectionsAreReset cuts off what a machine was connected to before it became another; what is inside of it stays.
func TestConnectionsAreReset(t *testing.T) {
	inNamespace(t, func(c *netlink, i nic) {
		n := agent.Network{Addresses: []string{"10.7.0.2/24", "fd07::2/64"}}
		if err := mustParse(t, n).apply(c, i, false); err != nil {
			t.Error(err)
			return
		}
		// Sockets stay in the namespace that they were made in, whatever thread uses them.
		pair := func(address string) [2]net.Conn {
			l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
			if err != nil {
				t.Error(err)
				return [2]net.Conn{}
			}
			defer l.Close()
			a, err := net.Dial("tcp", l.Addr().String())
			// The kernel makes an IPv6 address usable by and by, on a work queue.
			for range 20 {
				if !errors.Is(err, unix.EHOSTUNREACH) {
					break
				}
				a, err = net.Dial("tcp", l.Addr().String())
			}
			if err != nil {
				t.Error(err)
				return [2]net.Conn{}
			}
			b, err := l.Accept()
			if err != nil {
				t.Error(err)
			}
			return [2]net.Conn{a, b}
		}
		abroad := [][2]net.Conn{pair("10.7.0.2"), pair("fd07::2")}
		home := [][2]net.Conn{pair("127.0.0.1"), pair("::1")}
		if t.Failed() {
			return
		}
		i.name = interfaceName
		if err := mustParse(t, n).apply(c, i, true); err != nil {
			t.Error(err)
			return
		}
		for _, p := range slices.Concat(abroad, home) {
			for _, conn := range p {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
			}
		}
		for k, p := range abroad {
			for _, conn := range p {
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("connection %d reads %v", k, err)
				}
			}
		}
		for k, p := range home {
			if _, err := p[0].Write([]byte("x")); err != nil {
				t.Errorf("connection %d writes %v", k, err)
			}
			if _, err := p[1].Read(make([]byte, 1)); err != nil {
				t.Errorf("connection %d reads %v", k, err)
			}
		}
	})
}

func TestNoNIC(t *testing.T) {
	inNamespace(t, func(c *netlink, _ nic) {
		if i, err := c.findNIC(); !errors.Is(err, errNoNIC) {
			t.Errorf("found %+v, %v among virtual interfaces", i, err)
		}
		p := plan{gateways: mustParse(t, agent.Network{Gateways: []string{"10.1.1.1"}}).gateways}
		if err := c.do(p.up(nic{index: 4711, name: interfaceName})); !errors.Is(err, unix.ENODEV) {
			t.Errorf("an interface that is not there: %v", err)
		}
	})
}

func TestParseNetworkRefuses(t *testing.T) {
	for name, n := range map[string]agent.Network{
		"a short MAC": {MAC: "02:00:00"}, "no hexadecimal": {MAC: "02:00:00:00:00:0x"}, "a small MTU": {MTU: 67}, "a large one": {MTU: 65536},
		"an address without a prefix": {Addresses: []string{"10.0.0.1"}}, "a gateway with one": {Gateways: []string{"10.0.0.1/8"}},
		"two lines": {Hosts: []string{"10.0.0.1 a\n10.0.0.2 b"}}, "a search domain of two lines": {Search: []string{"a\nnameserver 1.1.1.1"}},
		"many": {DNS: make([]string, maxServers+1)}, "much": {CA: make([]byte, maxCA+1)},
	} {
		if _, err := parseNetwork(&n); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestHosts(t *testing.T) {
	if got, want := hosts("box", "10.0.0.2", []string{"10.0.0.1\tgateway"}), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.0.0.2\tbox\n10.0.0.1\tgateway\n"; got != want {
		t.Errorf("%q", got)
	}
}

// TestOverwrite replaces links, wherever they lead, makes what is not there, and leaves nothing of what was.
func TestOverwrite(t *testing.T) {
	dir := t.TempDir()
	elsewhere := dir + "/elsewhere"
	if err := errors.Join(os.WriteFile(elsewhere, []byte("theirs"), 0o644), os.WriteFile(dir+"/longer", []byte("longer than ours"), 0o644),
		os.WriteFile(dir+"/shorter", []byte("us"), 0o644), os.Symlink(elsewhere, dir+"/link"), os.Symlink(dir+"/nowhere/at/all", dir+"/dangling")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "dangling", "none", "etc/none", "longer", "shorter"} {
		if err := (&server{}).overwrite(dir+"/"+name, "ours"); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(dir + "/" + name); string(b) != "ours" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if b, _ := os.ReadFile(elsewhere); string(b) != "theirs" {
		t.Errorf("the link's target has become %q", b)
	}
}

func TestTrustVariables(t *testing.T) {
	a := &server{}
	env := []string{"PATH=/bin", "CURL_CA_BUNDLE="}
	if got := a.withTrust(env); len(got) != 2 {
		t.Errorf("without certificates: %v", got)
	}
	a.ca = []byte("x")
	got := fmt.Sprint(a.withTrust(env))
	if want := "[PATH=/bin CURL_CA_BUNDLE= SSL_CERT_FILE=/run/spore/ca-bundle.pem REQUESTS_CA_BUNDLE=/run/spore/ca-bundle.pem GIT_SSL_CAINFO=/run/spore/ca-bundle.pem NODE_EXTRA_CA_CERTS=/run/spore/ca.pem]"; got != want {
		t.Errorf("%s", got)
	}
}
