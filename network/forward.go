package network

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Docker and ufw set the policy of iptables' FORWARD chain to DROP, and a packet that one table drops no other can accept. So a nat network
// has two rules of its own there for as long as its bridge is up: what comes from it, which its own table judges, and the answers.

// iptablesOf are the programs that a family's chain is changed with: where its rules are decides which.
var iptablesOf = []struct{ family, legacyNames, nft, legacy string }{
	{"ip", "/proc/net/ip_tables_names", "iptables-nft", "iptables-legacy"},
	{"ip6", "/proc/net/ip6_tables_names", "ip6tables-nft", "ip6tables-legacy"},
}

// forwardRules are the rules of a bridge, in the words of iptables(8).
func forwardRules(bridge string) [][]string {
	return [][]string{
		{"-i", bridge, "-j", "ACCEPT"},
		{"-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
	}
}

// openForward lets a nat bridge's packets through where the FORWARD chain drops what it does not know, in the calling thread's namespace. Where
// iptables is not used nothing is done, and nothing of it is loaded.
func openForward(ctx context.Context, bridge string) error {
	for _, program := range filteringPrograms() {
		listed, err := iptables(ctx, program, "-S", "FORWARD")
		if err != nil {
			return err
		}
		if !strings.Contains(listed, "-P FORWARD DROP") {
			continue
		}
		for _, rule := range forwardRules(bridge) {
			if _, err := iptables(ctx, program, append([]string{"-C", "FORWARD"}, rule...)...); err == nil {
				continue // it is there
			}
			if _, err := iptables(ctx, program, append([]string{"-I", "FORWARD"}, rule...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// closeForward removes what openForward has made, however often.
func closeForward(ctx context.Context, bridge string) error {
	for _, program := range filteringPrograms() {
		listed, err := iptables(ctx, program, "-S", "FORWARD")
		if err != nil {
			return err
		}
		for range strings.Count(listed, bridge) {
			for _, rule := range forwardRules(bridge) {
				_, _ = iptables(ctx, program, append([]string{"-D", "FORWARD"}, rule...)...) // one that is not there is fine
			}
		}
	}
	return nil
}

// filteringPrograms are those whose filter table is there.
func filteringPrograms() (programs []string) {
	for _, p := range iptablesOf {
		if tableExists(p.family, "filter") {
			programs = append(programs, p.nft)
		}
		if names, err := os.ReadFile(p.legacyNames); err == nil && bytes.Contains(names, []byte("filter\n")) {
			programs = append(programs, p.legacy)
		}
	}
	return programs
}

// iptables runs one of its variants and returns what it prints. A variant that is not installed prints nothing: whoever filled the table
// has another.
func iptables(ctx context.Context, program string, args ...string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		if path = "/usr/sbin/" + program; unix.Access(path, unix.X_OK) != nil {
			return "", nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, nftPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"-w"}, args...)...)
	cmd.WaitDelay = pluginPatience
	stdout, stderr := &bounded{limit: maxOutput}, &bounded{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
