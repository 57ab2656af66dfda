package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// writeList puts a configuration list where n looks for it: our bridge with addresses of its own, and further plugins.
func writeList(t *testing.T, n *Networks, name string, more string) {
	t.Helper()
	dir := n.cfg.Lists[0]
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"cniVersion":"0.4.0","name":%q,"plugins":[{"type":"bridge","bridge":"sporecni0","isGateway":true,"mtu":1400,
		"ipam":{"type":"host-local","dataDir":%q,"subnet":"198.19.5.0/24","routes":[{"dst":"0.0.0.0/0"}]},"dns":{"nameservers":["198.19.5.1"],"search":["cni.example"]}}%s]}`,
		name, n.path(addressesDir), more)
	if err := os.WriteFile(filepath.Join(dir, name+".conflist"), []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("sporecni0"); err == nil { // the plugin leaves it, and it is not ours to remove
			netlink.LinkDel(link)
		}
	})
}

// writePlugin makes a plugin of a shell script.
func writePlugin(t *testing.T, n *Networks, name, script string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plugins")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	n.cfg.Plugins = append(n.cfg.Plugins, dir)
}

func TestAttachToCNIList(t *testing.T) {
	n := testNetworks(t)
	writeList(t, n, "any", "")
	c := Choice{KindCNI, "any"}
	for _, mediated := range []bool{false, true} {
		a := mustAttach(t, n, Request{Choice: c, Mediated: mediated})
		if a.Mediated != mediated || (a.Tap == nil) != mediated || a.MTU != 1400 || len(a.Addresses) != 1 || a.DNS[0].String() != "198.19.5.1" || a.Search[0] != "cni.example" || len(a.Routes) != 1 {
			t.Errorf("%+v", a)
		}
		inside := 0
		within(t, a.NetNS, func() error {
			link, err := netlink.LinkByName(guestInterface)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			inside = len(addrs)
			return err
		})
		if (inside == 1) != mediated {
			t.Errorf("%d addresses in the namespace, mediated %v", inside, mediated)
		}
		if a.Tap != nil {
			a.Tap.Close()
		}
		if err := n.Detach(context.Background(), a.Sandbox); err != nil {
			t.Fatal(err)
		}
	}
	small := mustAttach(t, n, Request{Choice: c, MTU: 1300})
	if small.MTU != 1300 {
		t.Errorf("MTU %d", small.MTU)
	}
	small.Tap.Close()
	if err := n.Detach(context.Background(), small.Sandbox); err != nil {
		t.Error(err)
	}
	if _, err := n.Attach(context.Background(), Request{Sandbox: newID(), Choice: c, MTU: 9000}); err == nil {
		t.Error("an MTU that is larger than the network's")
	}
	if left := leftOf(n); left != nil {
		t.Errorf("left: %q", left)
	}
}

// Nothing is left of an attachment whose list fails half-way, or is given up on.
func TestCNI02FailedADDLeavesNothing(t *testing.T) {
	for _, tr := range []struct{ name, script, want string }{
		{"says why", `[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"0.4.0","code":100,"msg":"out of luck"}'; exit 1; }`, "out of luck"},
		{"says nothing", `[ $CNI_COMMAND = DEL ] || { echo trouble >&2; exit 3; }`, "trouble"},
		{"talks nonsense", `[ $CNI_COMMAND = DEL ] || echo nonsense`, "CNI ADD"},
		{"talks too much", `[ $CNI_COMMAND = DEL ] || head -c 1000000 /dev/zero`, "more than"},
		{"never ends", `[ $CNI_COMMAND = DEL ] || sleep 600 <&- >&- 2>&- 3<&-`, "deadline"},
	} {
		t.Run(tr.name, func(t *testing.T) {
			n := testNetworks(t)
			writePlugin(t, n, "awkward", tr.script)
			writeList(t, n, "awkward", `,{"type":"awkward"}`)
			limit := time.Minute
			if tr.want == "deadline" {
				limit = 5 * time.Second
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_, err := n.Attach(ctx, Request{Sandbox: newID(), Choice: Choice{KindCNI, "awkward"}})
			if err == nil || !strings.Contains(err.Error(), tr.want) {
				t.Errorf("attach: %v, want %q", err, tr.want)
			}
			if left := leftOf(n); left != nil {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A plugin that cannot undo what it did keeps the record, and a later sweep finishes.
func TestCNI02FailedDELIsTriedAgain(t *testing.T) {
	n := testNetworks(t)
	flag := filepath.Join(t.TempDir(), "broken")
	writePlugin(t, n, "stubborn", fmt.Sprintf(`[ $CNI_COMMAND = DEL ] && [ -e %s ] && { echo '{"cniVersion":"0.4.0","code":100,"msg":"not now"}'; exit 1; }
[ $CNI_COMMAND = DEL ] || sed 's/.*"prevResult"://; s/,"type":.*/}/; s/}}*$/}/' >/dev/null; [ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"version":"4","address":"198.19.5.77/24","interface":0}]}'`, flag))
	writeList(t, n, "stubborn", `,{"type":"stubborn"}`)
	a := mustAttach(t, n, Request{Choice: Choice{KindCNI, "stubborn"}})
	a.Tap.Close()
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(context.Background(), a.Sandbox); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("detach: %v", err)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Sweep(context.Background(), func(string) bool { return true }); got != 1 || err != nil {
		t.Errorf("swept %d, %v", got, err)
	}
	if left := leftOf(n); left != nil {
		t.Errorf("left: %q", left)
	}
}

// A bridge of the host's is joined as it is, and left as it was.
func TestAttachToHostsBridge(t *testing.T) {
	n := testNetworks(t)
	ctx := context.Background()
	c := Choice{KindBridge, "sporetestbr"}
	if _, err := n.Attach(ctx, Request{Sandbox: newID(), Choice: c}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "spore network create") {
		t.Errorf("without a record: %v", err)
	}
	if _, err := n.Create(ctx, c, Options{Subnets: prefixes("198.19.6.0/24"), Ranges: []AddrRange{{addrOf("198.19.6.100"), addrOf("198.19.6.120")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(ctx, Request{Sandbox: newID(), Choice: c}); err == nil {
		t.Error("a bridge that is not there")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.Name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if link, err := netlink.LinkByName(c.Name); err != nil || netlink.LinkDel(link) != nil {
			t.Errorf("the host's bridge: %v", err)
		}
	}()
	if err := configure(c.Name, "198.19.6.1/24"); err != nil {
		t.Fatal(err)
	}
	a := mustAttach(t, n, Request{Choice: c})
	if a.Addresses[0].String() != "198.19.6.100/24" || a.Gateways[0].String() != "198.19.6.1" || len(a.Routes) != 1 {
		t.Errorf("%+v", a)
	}
	greet(t, "", "198.19.6.1:18081")
	if got, err := call(newGuest(t, a), "198.19.6.1:18081", dialLimit); got != "198.19.6.100" {
		t.Errorf("from the guest: %q, %v", got, err)
	}
	a.Tap.Close()
	if err := n.Detach(ctx, a.Sandbox); err != nil {
		t.Error(err)
	}
	if err := n.Remove(ctx, c); err != nil {
		t.Error(err)
	}
}
