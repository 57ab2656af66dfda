package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftPatience bounds one run of nft, which takes milliseconds: a machine that is busy may take long.
const nftPatience = time.Minute

// nft runs nft(8) in the calling thread's namespace, with a ruleset on its standard input if there is one, and returns what it prints.
// A ruleset is loaded whole or not at all.
func nft(ctx context.Context, rules string, args ...string) ([]byte, error) {
	path, err := findNFT()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, nftPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = pluginPatience
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	stdout, stderr := &bounded{limit: maxOutput}, &bounded{limit: 4 << 10}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(rules), stdout, stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// findNFT returns the path of nft(8): the directories for administrators are not in everybody's PATH.
func findNFT() (string, error) {
	for _, name := range []string{"nft", "/usr/sbin/nft", "/sbin/nft"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("nft is missing: the filters of networks are loaded with it: install the package nftables")
}

// loadRules loads a ruleset in the calling thread's namespace.
func loadRules(ctx context.Context, rules string) error {
	_, err := nft(ctx, rules, "-f", "-")
	return err
}

// tableExists asks the kernel for a table in the calling thread's namespace. Somebody may have flushed all rules.
func tableExists(family, name string) bool {
	number := map[string]uint8{"inet": unix.NFPROTO_INET, "netdev": unix.NFPROTO_NETDEV, "ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6}[family]
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: number})
	req.AddData(nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err == nil
}

// deleteTable removes a table in the calling thread's namespace, if it is there.
func deleteTable(ctx context.Context, family, name string) error {
	if !tableExists(family, name) {
		return nil
	}
	return loadRules(ctx, fmt.Sprintf("table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, name))
}

// namedCounters reads the counters of the guest's table, in the calling thread's namespace.
func namedCounters(ctx context.Context) (map[string]Traffic, error) {
	out, err := nft(ctx, "", "-j", "list", "counters", "table", "netdev", "spore")
	if err != nil {
		return nil, err
	}
	return parseCounters(out)
}

// parseCounters reads what nft -j prints (libnftables-json(5)).
func parseCounters(text []byte) (map[string]Traffic, error) {
	var listing struct {
		Objects []struct {
			Counter *struct {
				Name string `json:"name"`
				Traffic
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &listing); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	all := map[string]Traffic{}
	for _, o := range listing.Objects {
		if o.Counter != nil {
			all[o.Counter.Name] = o.Counter.Traffic
		}
	}
	return all, nil
}
