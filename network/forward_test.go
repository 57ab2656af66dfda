package network

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"spore/internal/testenv"
)

// A host whose FORWARD chain drops what it does not know lets a nat bridge through, for as long as that is up.
func TestForwardIsOpened(t *testing.T) {
	testenv.Require(t, needNetworks)
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip(err)
	}
	ctx := context.Background()
	err := inNetNS(scratchNetNS(t), func() error {
		if err := openForward(ctx, "spore-test"); err != nil || tableExists("ip", "filter") {
			t.Errorf("where iptables is not used: %v, table %v", err, tableExists("ip", "filter"))
		}
		if _, err := iptables(ctx, "iptables-nft", "-P", "FORWARD", "DROP"); err != nil {
			return err
		}
		before, err := iptables(ctx, "iptables-nft", "-S", "FORWARD")
		if err != nil {
			return err
		}
		for range 2 {
			if err := openForward(ctx, "spore-test"); err != nil {
				return err
			}
		}
		during, err := iptables(ctx, "iptables-nft", "-S", "FORWARD")
		if err != nil {
			return err
		}
		if strings.Count(during, "spore-test") != 2 {
			t.Errorf("rules: %s", during)
		}
		for range 2 {
			if err := closeForward(ctx, "spore-test"); err != nil {
				return err
			}
		}
		after, err := iptables(ctx, "iptables-nft", "-S", "FORWARD")
		if after != before {
			t.Errorf("before %q, after %q", before, after)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
