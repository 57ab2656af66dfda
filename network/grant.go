package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
)

// maxGrants bounds the host's addresses that one sandbox may reach.
const maxGrants = 64

// Grant lets what stands in a sandbox's namespace on nat reach addresses of the host's own, which it does not otherwise: those that a rule names.
// Which of their ports, and whether at all, is spore-net's to judge. It lasts as long as the attachment. On other networks, and without
// root, there is nothing to let through, and that is no error.
func (n *Networks) Grant(ctx context.Context, sandbox string, hosts []netip.Addr) error {
	all, err := n.places(sandbox)
	if err != nil || len(all) == 0 || all[0].Choice.Kind != KindNAT || len(hosts) == 0 {
		return err
	}
	if len(hosts) > maxGrants {
		return fmt.Errorf("grant sandbox %s addresses of the host: %d, at most %d", sandbox, len(hosts), maxGrants)
	}
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := n.loadAttachment(all[0].ID)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("grant sandbox %s addresses of the host: it is detached", sandbox)
	}
	if err != nil {
		return err
	}
	r.Granted = hosts
	if err := n.saveAttachment(r); err != nil { // before: whoever removes it removes what is granted
		return err
	}
	if err := loadRules(ctx, grants("add", r)); err != nil {
		return fmt.Errorf("grant sandbox %s addresses of the host: %w", sandbox, err)
	}
	return nil
}

// grants is the ruleset that adds or deletes what is granted to an attachment, whether it is there or not; "" for nothing.
func grants(verb string, r record) string {
	var b strings.Builder
	for _, p := range r.Addresses {
		for _, host := range r.Granted {
			if host.Is4() != p.Addr().Is4() {
				continue
			}
			element := fmt.Sprintf("element inet %s granted_%s { %s . %s }\n", r.Bridge, family(host), p.Addr(), host)
			b.WriteString("add " + element)
			if verb != "add" {
				b.WriteString(verb + " " + element)
			}
		}
	}
	return b.String()
}

// granted is what the attachments to a network have been granted: rules that are loaded anew must not lose it.
func (n *Networks) granted(c Choice) (string, error) {
	all, err := n.records(func(r record) bool { return r.Choice == c && len(r.Granted) > 0 && r.Phase != phaseRemoving })
	var b strings.Builder
	for _, r := range all {
		b.WriteString(grants("add", r))
	}
	return b.String(), err
}

// revoke takes back what an attachment has been granted, before another gets its address.
func revoke(ctx context.Context, r record) error {
	if len(r.Granted) == 0 || !tableExists("inet", r.Bridge) {
		return nil
	}
	return loadRules(ctx, grants("delete", r))
}
