package network

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spore/internal/flock"
	"spore/internal/testenv"
)

// plugins is where make build puts the CNI plugins.
func plugins() string {
	if bin := os.Getenv("SPORE_BIN"); bin != "" {
		return filepath.Join(bin, "cni")
	}
	dir, _ := filepath.Abs("../bin/cni")
	return dir
}

// needNetworks is root with all that networks are made of: tried by making one of each kind of thing.
var needNetworks = testenv.Need{Name: "network", Probe: func() error {
	if err := testenv.Root.Probe(); err != nil {
		return err
	}
	for _, p := range []string{"bridge", "host-local"} {
		if _, err := findPlugin([]string{plugins()}, p); err != nil {
			return err
		}
	}
	return Probe(context.Background())
}}

// testNetworks is a directory of networks of the test's own, without nameservers of the host's. What is left of it when the test ends is a failure.
func testNetworks(t testing.TB) *Networks {
	t.Helper()
	testenv.Require(t, needNetworks)
	lock, err := flock.Open("/run/spore-network-test.lock", unix.LOCK_EX) // names, ports and addresses of the host are used by one test at a time
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	dir := t.TempDir()
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 192.0.2.53\nsearch example.org\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := Open(Config{Dir: filepath.Join(dir, "n"), Plugins: []string{plugins()}, Lists: []string{filepath.Join(dir, "net.d")}, resolvConf: []string{conf}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.Sweep(context.Background(), func(string) bool { return false }); err != nil {
			t.Errorf("sweep: %v", err)
		}
		for _, left := range leftOf(n) {
			t.Errorf("left: %s", left)
		}
	})
	return n
}

// leftOf lists what there is of any attachment: records, locks, namespaces, addresses, results, bridges, tables.
func leftOf(n *Networks) (left []string) {
	for _, pattern := range []string{attachmentsDir + "/*", netnsDir + "/*", resultsDir + "/results/*", networksDir + "/*.nft"} {
		paths, _ := filepath.Glob(n.path(pattern))
		left = append(left, paths...)
	}
	filepath.WalkDir(n.path(addressesDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if _, err := netip.ParseAddr(d.Name()); err == nil {
			left = append(left, path)
		}
		return nil
	})
	all, _ := n.List()
	for _, net := range all {
		if tableless(net.Kind) {
			continue
		}
		if _, err := netlink.LinkByName(net.Bridge); err == nil {
			left = append(left, "link "+net.Bridge)
		}
		if tableExists(tableFamily(net.Kind), net.Bridge) {
			left = append(left, "table "+net.Bridge)
		}
	}
	return left
}

func mustAttach(t testing.TB, n *Networks, r Request) *Attachment {
	t.Helper()
	if r.Sandbox == "" {
		r.Sandbox = newID()
	}
	a, err := n.Attach(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if a.Tap != nil {
		t.Cleanup(func() { a.Tap.Close() })
	}
	return a
}

func TestAttachEveryKind(t *testing.T) {
	n := testNetworks(t)
	for _, c := range []Choice{{Kind: KindNAT}, {KindInternal, "a"}, {Kind: KindHostOnly}} {
		t.Run(c.String(), func(t *testing.T) {
			a := mustAttach(t, n, Request{Choice: c})
			t.Logf("%+v", a.Addresses)
			if (a.Tap == nil) != c.Mediated() || a.Mediated != c.Mediated() {
				t.Errorf("mediated %v, tap %v", a.Mediated, a.Tap)
			}
			if len(a.Addresses) != 2 || len(a.MAC) != 6 || a.MTU != 1500 {
				t.Errorf("addresses %v, MAC %s, MTU %d", a.Addresses, a.MAC, a.MTU)
			}
			if (c.Kind == KindNAT) != (len(a.Gateways) == 2 && len(a.Routes) == 2) {
				t.Errorf("gateways %v, routes %v", a.Gateways, a.Routes)
			}
			if !isNetNS(a.NetNS) {
				t.Errorf("%s is no namespace", a.NetNS)
			}
			if err := n.Remove(context.Background(), c); !errors.Is(err, ErrInUse) {
				t.Errorf("removed while in use: %v", err)
			}
			if a.Tap != nil {
				if err := a.Tap.Close(); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				if err := n.Detach(context.Background(), a.Sandbox); err != nil {
					t.Fatal(err)
				}
			}
			if left := leftOf(n); left != nil {
				t.Errorf("left: %q", left)
			}
			if err := n.Remove(context.Background(), c); err != nil {
				t.Error(err)
			}
		})
	}
}
