package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
)

// Detach takes back every place that a sandbox has, from the records alone. One that has none is no error. It is done once, whoever
// else does it at the same time.
func (n *Networks) Detach(ctx context.Context, sandbox string) error {
	if !validID(sandbox) {
		return fmt.Errorf("detach sandbox %q: not an id of 12 hexadecimal digits", sandbox)
	}
	all, err := n.places(sandbox)
	if err != nil {
		return fmt.Errorf("detach sandbox %s: %w", sandbox, err)
	}
	var errs []error
	for _, r := range all {
		lock, err := n.lockAttachment(r.ID, lockPatience)
		if err == nil {
			err = n.remove(ctx, r.ID, lock)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", sandbox, err)
	}
	return nil
}

// places returns the attachments of a sandbox: the one that has its id, or else all that were bound to it.
func (n *Networks) places(sandbox string) ([]record, error) {
	r, err := n.loadAttachment(sandbox)
	if err == nil {
		return []record{r}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return n.records(func(r record) bool { return r.Sandbox == sandbox })
}

// remove takes back an attachment whose lock is held, however much of it there is, and gives the lock up. Each step can be done any number
// of times. When one fails the record stays, for the next Sweep.
func (n *Networks) remove(ctx context.Context, id string, lock *os.File) error {
	defer lock.Close()
	r, err := n.loadAttachment(id)
	if errors.Is(err, fs.ErrNotExist) { // it had come no further than its lock, or is gone
		return errors.Join(removeNetNS(n.path(netnsDir, id)), n.forget(id))
	}
	if err != nil {
		return fmt.Errorf("remove attachment %s: %w", id, err)
	}
	if r.Phase != phaseRemoving {
		r.Phase = phaseRemoving
		if err := n.saveAttachment(r); err != nil {
			return fmt.Errorf("remove attachment %s: %w", id, err)
		}
	}
	if err := revoke(ctx, r); err != nil {
		return fmt.Errorf("remove attachment %s: %w", id, err)
	}
	if err := n.delCNI(ctx, lock, r); err != nil {
		return fmt.Errorf("remove attachment %s: %w", id, err)
	}
	forgetAddresses(r)
	if err := removeNetNS(n.path(netnsDir, id)); err != nil {
		return fmt.Errorf("remove attachment %s: %w", id, err)
	}
	left, err := filepath.Glob(n.path(resultsDir, "results", "*-"+id+"-*")) // half a result of libcni's
	for _, path := range left {
		err = errors.Join(err, removeFile(path))
	}
	if err != nil {
		return fmt.Errorf("remove attachment %s: %w", id, err)
	}
	return n.leave(ctx, r)
}

// leave removes the record, and the network's bridge if this was the last on it.
func (n *Networks) leave(ctx context.Context, r record) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if !tableless(r.Choice.Kind) {
		alone, err := n.alone(r)
		if err != nil {
			return err
		}
		if alone {
			if err := n.lowerBridge(ctx, Network{Choice: r.Choice, Bridge: r.Bridge}); err != nil {
				return err
			}
		}
	}
	return n.forget(r.ID)
}

// forget removes the files of an attachment, its record first and its lock last: what has any other is swept.
func (n *Networks) forget(id string) error {
	var errs []error
	for _, suffix := range []string{".json.tmp", ".json", ".of", ".lock"} {
		errs = append(errs, removeFile(n.path(attachmentsDir, id+suffix)))
	}
	return errors.Join(errs...)
}

// forgetAddresses makes the host forget what it knows of an attachment's addresses: the next who has them has another MAC, and must not get
// the answers to somebody else's questions. What cannot be forgotten ages.
func forgetAddresses(r record) {
	link, _ := netlink.LinkByName(r.Bridge)
	for _, p := range r.Addresses {
		a := p.Addr()
		family := netlink.InetFamily(netlink.FAMILY_V4)
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		if link != nil {
			_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: int(family), IP: a.AsSlice()})
		}
		if r.Choice.Kind == KindNAT || r.Choice.Kind == KindCNI {
			filter := &netlink.ConntrackFilter{}
			if filter.AddIP(netlink.ConntrackOrigSrcIP, a.AsSlice()) == nil {
				_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
			}
		}
	}
}

// workPatience is how long Sweep waits for one that works on an attachment of nobody's: a plugin whose spore was killed.
const workPatience = 10 * time.Second

// Sweep finishes or undoes what processes that were killed have left: half-made and half-removed attachments, those whose
// sandbox no longer lives, namespaces, bridges, rules and addresses. It returns how many attachments it removed. live is
// asked for the id of a sandbox.
func (n *Networks) Sweep(ctx context.Context, live func(sandbox string) bool) (int, error) {
	if os.Geteuid() != 0 {
		return 0, nil // then there are none
	}
	ids, err := n.attachments()
	if err != nil {
		return 0, fmt.Errorf("sweep networks: %w", err)
	}
	var errs []error
	swept := 0
	for _, id := range ids {
		removed, err := n.sweepOne(ctx, id, live)
		if removed {
			swept++
		}
		errs = append(errs, err)
	}
	errs = append(errs, n.sweepBridges(ctx))
	if err := errors.Join(errs...); err != nil {
		return swept, fmt.Errorf("sweep networks: %w", err)
	}
	return swept, nil
}

// sweepOne removes an attachment that is nobody's.
func (n *Networks) sweepOne(ctx context.Context, id string, live func(string) bool) (bool, error) {
	r, err := n.loadAttachment(id)
	patience := workPatience
	switch {
	case errors.Is(err, fs.ErrNotExist):
		patience = 0 // nothing of it is there, or somebody is about to begin
	case err != nil:
		return false, err
	case r.wanted(live):
		return false, nil
	case r.works():
		patience = 0 // it finishes what it does, or it is the pool, or it has given up
	}
	lock, err := n.lockAttachment(id, patience)
	if errors.Is(err, errBusy) {
		return false, nil // whoever works on it finishes it
	}
	if err != nil {
		return false, err
	}
	if r, err := n.loadAttachment(id); err == nil && r.wanted(live) { // it was bound or finished meanwhile
		return false, lock.Close()
	}
	n.cfg.Log.Info("remove what is left of an attachment", "attachment", id, "sandbox", r.Sandbox, "phase", r.Phase)
	return true, n.remove(ctx, id, lock)
}

// wanted reports whether an attachment is as it should be.
func (r record) wanted(live func(string) bool) bool {
	return r.Phase == phaseReady && r.Sandbox != "" && live(r.Sandbox)
}

// sweepBridges lowers the bridges that nobody is on.
func (n *Networks) sweepBridges(ctx context.Context) error {
	loaded, err := filepath.Glob(n.path(networksDir, "*.nft"))
	all, listErr := n.List()
	if err != nil || listErr != nil || len(loaded) == 0 && !n.anyBridge(all) {
		return errors.Join(err, listErr)
	}
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, net := range all {
		if tableless(net.Kind) {
			continue
		}
		alone, err := n.alone(record{Attachment: Attachment{Choice: net.Choice}})
		if err == nil && alone {
			err = n.lowerBridge(ctx, net)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// anyBridge reports whether a network's bridge is there.
func (n *Networks) anyBridge(all []Network) bool {
	for _, net := range all {
		if _, err := netlink.LinkByName(net.Bridge); err == nil && !tableless(net.Kind) {
			return true
		}
	}
	return false
}

// Counters returns the figures of a sandbox's switched attachment.
func (n *Networks) Counters(sandbox string) (Counters, error) {
	all, err := n.places(sandbox)
	if err != nil || len(all) == 0 || all[0].Mediated {
		return Counters{}, errors.Join(fmt.Errorf("count traffic of sandbox %s: it is on no switched network", sandbox), err)
	}
	var c Counters
	err = inNetNS(all[0].NetNS, func() error {
		named, err := namedCounters(context.Background()) // bounded by itself
		c = Counters{FromGuest: named["from_guest"], ToGuest: named["to_guest"], Spoofed: named["spoofed"], Denied: named["denied"], Foreign: named["foreign"]}
		return err
	})
	if err != nil {
		return Counters{}, fmt.Errorf("count traffic of sandbox %s: %w", sandbox, err)
	}
	return c, nil
}
