package network

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// unprivileged is a directory of networks for what needs no root.
func unprivileged(t *testing.T) *Networks {
	t.Helper()
	dir := t.TempDir()
	n, err := Open(Config{Dir: filepath.Join(dir, "n"), Plugins: []string{filepath.Join(dir, "bin")}, Lists: []string{filepath.Join(dir, "net.d")}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParseChoice(t *testing.T) {
	for _, s := range []string{"none", "nat", "host-only", "internal:a", "internal:A-b_c.9", "bridge:br0", "cni:podman", "internal:" + strings.Repeat("x", 63)} {
		if c, err := ParseChoice(s); err != nil || c.String() != s {
			t.Errorf("%q: %v, %v", s, c, err)
		}
	}
	if c, err := ParseChoice(""); err != nil || !c.None() || c.String() != "none" {
		t.Errorf("nothing: %v, %v", c, err)
	}
	bad := []string{
		"NAT", "bridge", "internal:", "internal", "cni:", "nat:", "nat:x", "none:x", "host-only:x", "internal:a:b", "internal:.a", "internal:-a", "internal:a/b",
		"cni:../../etc/passwd", "cni:a..b", "cni:a\x00b", "internal:ä", "internal:a b", "bridge:sixteen-letters!", "bridge:0123456789abcdef", "internal:" + strings.Repeat("x", 64), ":x", "docker:x",
	}
	for _, s := range bad {
		if c, err := ParseChoice(s); !errors.Is(err, ErrChoice) {
			t.Errorf("%q is %v, %v", s, c, err)
		}
	}
}

func FuzzParseChoice(f *testing.F) {
	for _, s := range []string{"nat", "internal:a", "cni:../x", "bridge:br0", "none:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseChoice(s)
		if err != nil {
			return
		}
		if again, err := ParseChoice(c.String()); err != nil || again != c {
			t.Errorf("%q is %v, and that is %v, %v", s, c, again, err)
		}
		if path := filepath.Join("/networks", c.key()); filepath.Dir(path) != "/networks" || strings.ContainsAny(c.key(), "/\x00") {
			t.Errorf("%q is kept at %q", s, path)
		}
	})
}

func TestCreate(t *testing.T) {
	n := unprivileged(t)
	ctx := context.Background()
	internal := Choice{KindInternal, "x"}
	got, err := n.Create(ctx, internal, Options{Subnets: prefixes("192.0.2.77/24", "2001:db8::/64"), MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if want := prefixes("192.0.2.0/24", "2001:db8::/64"); !reflect.DeepEqual(got.Subnets, want) || got.Gateways != nil || got.Picked {
		t.Errorf("%+v", got)
	}
	if _, err := n.Create(ctx, internal, Options{}); !errors.Is(err, ErrExists) {
		t.Errorf("a second one: %v", err)
	}
	hostOnly, err := n.Create(ctx, Choice{Kind: KindHostOnly}, Options{Subnets: prefixes("192.0.2.0/24"), Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.9")}})
	if err != nil || hostOnly.Gateways[0].String() != "192.0.2.9" {
		t.Errorf("%+v, %v", hostOnly, err)
	}
	nat, err := n.Create(ctx, Choice{Kind: KindNAT}, Options{})
	if err != nil || len(nat.Subnets) == 0 || !nat.Picked || overlapsAny(nat.Subnets[0], got.Subnets) || nat.Gateways[0] != firstHost(nat.Subnets[0]) {
		t.Errorf("%+v, %v", nat, err)
	}
	second, err := n.Create(ctx, Choice{KindInternal, "y"}, Options{NoIPv6: true})
	if err != nil || len(second.Subnets) != 1 || overlapsAny(second.Subnets[0], nat.Subnets) {
		t.Errorf("%+v, %v", second, err)
	}
	all, err := n.List()
	if err != nil || len(all) != 4 || all[0].String() != "host-only" || !reflect.DeepEqual(all[1], got) {
		t.Errorf("%+v, %v", all, err)
	}
	if _, _, err := n.Inspect(Choice{KindInternal, "z"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("inspect: %v", err)
	}
	for _, bad := range []struct {
		choice Choice
		o      Options
	}{
		{Choice{Kind: KindNone}, Options{}},
		{Choice{KindCNI, "x"}, Options{}},
		{Choice{KindBridge, "br0"}, Options{}},
		{Choice{KindInternal, "b"}, Options{MTU: 1279}},
		{Choice{KindInternal, "b"}, Options{MTU: 65536}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("10.0.0.0/31")}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("127.0.0.0/8")}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("224.0.0.0/24")}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("10.0.0.0/24", "10.1.0.0/24")}},
		{Choice{KindInternal, "b"}, Options{Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("10.0.0.0/24"), Gateways: []netip.Addr{netip.MustParseAddr("10.0.1.1")}}},
		{Choice{KindInternal, "b"}, Options{Subnets: prefixes("10.0.0.0/24"), Ranges: []AddrRange{{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.8")}}}},
	} {
		if got, err := n.Create(ctx, bad.choice, bad.o); err == nil {
			t.Errorf("%v with %+v: %+v", bad.choice, bad.o, got)
		}
	}
}

func TestPickSubnets(t *testing.T) {
	got, err := pickSubnets(prefixes("10.213.0.0/16", "10.182.4.0/23", "10.182.0.1/32"), true)
	if err != nil || got[0].String() != "10.182.8.0/22" || got[1].Bits() != 64 || !netip.MustParsePrefix("fd00::/8").Contains(got[1].Addr()) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := pickSubnets(append(pools[:len(pools):len(pools)], prefixes("10.182.8.0/22")...), true); err == nil {
		t.Errorf("of nothing it picked %v", got)
	}
}

func TestGeneratedListsGolden(t *testing.T) {
	for name, net := range map[string]Network{
		"nat":       {Choice: Choice{Kind: KindNAT}, Subnets: prefixes("10.213.0.0/22", "fd01:2345:6789::/64")},
		"internal":  {Choice: Choice{KindInternal, "a"}, Subnets: prefixes("10.213.4.0/22", "fd01:2345:6790::/64"), MTU: 9000},
		"host-only": {Choice: Choice{Kind: KindHostOnly}, Subnets: prefixes("10.213.8.0/22")},
		"bridge":    {Choice: Choice{KindBridge, "br0"}, Subnets: prefixes("192.0.2.0/24"), Ranges: []AddrRange{{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.199")}}},
	} {
		net.Bridge = "spore-12345678"
		if net.Kind == KindBridge {
			net.Bridge = net.Name
		}
		if net.Kind != KindInternal {
			for _, p := range net.Subnets {
				net.Gateways = append(net.Gateways, firstHost(p))
			}
		}
		list, err := generate(net, "/var/lib/spore/networks/addresses")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkList(list); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		golden(t, name+".conflist", string(list)+"\n")
		if net.Kind == KindBridge {
			if rules := hostRules(net, nil); rules != "" {
				t.Errorf("a bridge that is not ours has rules: %s", rules)
			}
			continue
		}
		golden(t, name+".nft", hostRules(net, []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}))
	}
}

// CNI-01: what a list names is looked for in the directories of plugins and nowhere else (CVE-2021-20206).
func TestCNI01NamesDoNotLeadOut(t *testing.T) {
	n := unprivileged(t)
	dir := n.cfg.Lists[0]
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lists := map[string]string{
		"type":      `{"cniVersion":"1.0.0","name":"type","plugins":[{"type":"../../bin/sh"}]}`,
		"absolute":  `{"cniVersion":"1.0.0","name":"absolute","plugins":[{"type":"/bin/sh"}]}`,
		"ipam":      `{"cniVersion":"1.0.0","name":"ipam","plugins":[{"type":"bridge","ipam":{"type":"../../../bin/sh"}}]}`,
		"delegate":  `{"cniVersion":"1.0.0","name":"delegate","plugins":[{"type":"flannel","delegate":{"Type":"../sh"}}]}`,
		"dots":      `{"cniVersion":"1.0.0","name":"dots","plugins":[{"type":".."}]}`,
		"none":      `{"cniVersion":"1.0.0","name":"none","plugins":[]}`,
		"zero":      `{"cniVersion":"1.0.0","name":"zero","plugins":[{"type":"bridge","x":"` + "\x00" + `"}]}`,
		"escape":    `{"cniVersion":"1.0.0","name":"escape","plugins":[{"type":"br\u0000idge"}]}`,
		"notlist":   `[]`,
		"../escape": `{"cniVersion":"1.0.0","name":"../escape","plugins":[{"type":"bridge"}]}`,
		"good":      `{"cniVersion":"1.0.0","name":"good","plugins":[{"type":"bridge"}]}`,
	}
	for name, body := range lists {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_")+".conflist")
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := findList(n.cfg.Lists, name)
		if (err == nil) != (name == "good") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := n.Lists(); len(got) != 1 || got[0].String() != "cni:good" {
		t.Errorf("offered: %v", got)
	}
	for _, plugin := range []string{"../bin/sh", "/bin/sh", "", "..", "a/b", "a\x00"} {
		if path, err := findPlugin([]string{"/bin", "/usr"}, plugin); err == nil {
			t.Errorf("plugin %q is %s", plugin, path)
		}
	}
}

func TestJudgeResult(t *testing.T) {
	good := `{"cniVersion":"1.0.0","interfaces":[{"name":"br","mac":"02:00:00:00:00:01"},{"name":"veth1"},{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/netns/x"}],
		"ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":2},{"address":"10.9.0.2/16","interface":0},{"address":"fd00::2/64"}],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.7.0.0/16","gw":"10.1.0.9"},{"dst":"::/0"}],"dns":{"nameservers":["10.1.0.53","nonsense"],"search":["example.org"]}}`
	var r record
	if err := r.judge(result(t, good)); err != nil {
		t.Fatal(err)
	}
	want := Attachment{
		MAC: MAC{2, 0, 0, 0, 0, 2}, Addresses: prefixes("10.1.0.2/16", "fd00::2/64"), Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")},
		Routes: []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.1.0.1")}, {netip.MustParsePrefix("10.7.0.0/16"), netip.MustParseAddr("10.1.0.9")}, {netip.MustParsePrefix("::/0"), netip.Addr{}}},
		DNS:    []netip.Addr{netip.MustParseAddr("10.1.0.53")}, Search: []string{"example.org"},
	}
	if !reflect.DeepEqual(r.Attachment, want) {
		t.Errorf("got  %+v\nwant %+v", r.Attachment, want)
	}
	many := strings.TrimSuffix(strings.Repeat(`{"address":"10.1.0.2/16"},`, maxAddresses+1), ",")
	for _, bad := range []string{
		`{"cniVersion":"1.0.0","ips":[{"address":"224.0.0.1/4"}]}`, `{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}`, `{"cniVersion":"1.0.0","ips":[{"address":"::1/128"}]}`,
		`{"cniVersion":"1.0.0","ips":[` + many + `]}`,
	} {
		var r record
		if err := r.judge(result(t, bad)); err == nil {
			t.Errorf("%s gave %+v", bad, r.Attachment)
		}
	}
}

func result(t *testing.T, text string) *types100.Result {
	t.Helper()
	got, err := create.CreateFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	res, err := types100.GetResult(got)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// FuzzResult holds what a plugin prints to our bounds.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"x"}],"ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}`))
	f.Add([]byte(`{"cniVersion":"0.3.1","ips":[{"version":"6","address":"fd00::2/64"}],"dns":{"nameservers":["::1"]}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","ips":[null],"routes":[null],"interfaces":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/16","routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := create.CreateFromBytes(text)
		if err != nil {
			return
		}
		res, err := types100.GetResult(got)
		if err != nil {
			return
		}
		var r record
		if r.judge(res) != nil {
			return
		}
		if len(r.Addresses) > maxAddresses || len(r.Gateways) > maxAddresses || len(r.Routes) > maxRoutes || len(r.DNS) > maxNameservers {
			t.Errorf("more than we take: %+v", r.Attachment)
		}
		for _, p := range r.Addresses {
			if !p.IsValid() || p.Addr().Is4In6() || p.Addr().IsMulticast() {
				t.Errorf("address %v", p)
			}
		}
		if len(r.MAC) == 6 {
			_ = guestRules(r.MAC, r.Addresses)
		} else if r.MAC != nil {
			t.Errorf("MAC %x", []byte(r.MAC))
		}
		body, err := json.Marshal(r)
		var again record
		if err == nil {
			err = json.Unmarshal(body, &again)
		}
		if err != nil || !reflect.DeepEqual(again.Addresses, r.Addresses) || !reflect.DeepEqual(again.MAC, r.MAC) {
			t.Errorf("read back: %+v, %v", again, err)
		}
	})
}

func TestHostResolver(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := write("stub", "# resolved\nnameserver 127.0.0.53\noptions edns0\nsearch home.example corp.example\n")
	real := write("real", "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 192.0.2.1\ndomain other.example\n")
	inside := hostResolver([]string{stub, real}, false)
	if len(inside.servers) != 1 || inside.servers[0].String() != "127.0.0.53" {
		t.Errorf("on the host: %+v", inside)
	}
	outside := hostResolver([]string{stub, real}, true)
	if len(outside.servers) != 2 || outside.servers[0].String() != "192.0.2.1" || !reflect.DeepEqual(outside.search, []string{"home.example", "corp.example"}) {
		t.Errorf("from a namespace: %+v", outside)
	}
	if got := hostResolver([]string{stub, filepath.Join(dir, "none")}, true); got.servers != nil {
		t.Errorf("of a loopback address only: %+v", got)
	}
}

func TestCounters(t *testing.T) {
	got, err := parseCounters([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "netdev", "name": "denied", "table": "spore", "handle": 4, "packets": 7, "bytes": 420}}]}`))
	if err != nil || got["denied"] != (Traffic{7, 420}) || len(got) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseCounters([]byte("no")); err == nil {
		t.Error("no JSON, no error")
	}
}
