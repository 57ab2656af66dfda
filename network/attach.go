package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"spore/internal/cleanup"
	"spore/internal/timing"
)

// Attach gives a sandbox its place on a network: a namespace with what CNI puts in it and, unless it is mediated, a tap that
// is joined to that behind a filter. The network is made if it is one that may be and is not there. Nothing is left when it fails.
// Without root there is only nat, and it has neither record nor namespace: spore-net dials from where its caller is.
func (n *Networks) Attach(ctx context.Context, r Request) (*Attachment, error) {
	if !validID(r.Sandbox) {
		return nil, fmt.Errorf("attach sandbox %q: not an id of 12 hexadecimal digits", r.Sandbox)
	}
	a, lock, err := n.attach(ctx, r.Sandbox, r.Class())
	if err != nil {
		return nil, fmt.Errorf("attach sandbox %s to network %s: %w", r.Sandbox, r.Choice, err)
	}
	if lock != nil {
		lock.Close()
	}
	return a, nil
}

// Prepare makes an attachment for a pool: see Attacher. Its lock is held until it is bound, discarded, or this process ends.
func (n *Networks) Prepare(ctx context.Context, c Class) (*Attachment, error) {
	if os.Geteuid() != 0 {
		return nil, ErrRoot
	}
	a, lock, err := n.attach(ctx, "", c)
	if err != nil {
		return nil, fmt.Errorf("prepare attachment to network %s: %w", c.Choice, err)
	}
	a.lock = lock
	return a, nil
}

// Bind gives a prepared attachment to a sandbox: see Attacher. It makes one link, which says all at once and takes some ten microseconds: to
// replace a file takes milliseconds where that makes the file system write.
func (n *Networks) Bind(a *Attachment, sandbox string) error {
	if !validID(sandbox) || a.lock == nil {
		return fmt.Errorf("bind attachment %s to sandbox %q: not an id, or not prepared", a.ID, sandbox)
	}
	if err := os.Symlink(sandbox, n.path(attachmentsDir, a.ID+".of")); err != nil {
		return fmt.Errorf("bind attachment %s: %w", a.ID, err)
	}
	a.Sandbox = sandbox
	a.lock.Close()
	a.lock = nil
	return nil
}

// Discard removes a prepared attachment: see Attacher.
func (n *Networks) Discard(ctx context.Context, a *Attachment) error {
	if a.Tap != nil {
		a.Tap.Close()
	}
	if a.lock == nil {
		return fmt.Errorf("discard attachment %s: it is a sandbox's", a.ID)
	}
	lock := a.lock
	a.lock = nil
	return n.remove(ctx, a.ID, lock)
}

// attach makes an attachment and returns it with its lock, which is nil where there is no record.
func (n *Networks) attach(ctx context.Context, sandbox string, c Class) (_ *Attachment, _ *os.File, err error) {
	switch {
	case c.Choice.None():
		return nil, nil, errors.New("none is no network")
	case c.Mediated && !c.Choice.MayMediate():
		return nil, nil, errors.New("it is switched: there are no rules, secrets or published ports on it")
	case os.Geteuid() != 0 && c.Choice.Kind == KindNAT:
		return n.rootless(sandbox, c), nil, nil
	case os.Geteuid() != 0:
		return nil, nil, ErrRoot
	}
	id := sandbox
	if id == "" {
		id = newID()
	}
	r := record{Attachment: Attachment{ID: id, Sandbox: sandbox, Choice: c.Choice, Mediated: c.Mediated}, Phase: phaseAdding, Created: time.Now().UTC()}
	r.NetNS = n.path(netnsDir, r.ID)
	lock, err := n.lockClean(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	// Whatever has been made is taken back as Detach does, with time of its own when ctx has ended.
	var undo cleanup.Stack
	undo.Push(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		return n.remove(ctx, r.ID, lock)
	})
	clock := timing.Start()
	net, err := n.begin(ctx, &r)
	clock.Done("network")
	if err == nil {
		err = n.furnish(ctx, lock, net, c, &r, clock)
	}
	if err == nil {
		r.Phase = phaseReady
		if sandbox == "" {
			r.Phase = phasePooled
		}
		err = n.saveAttachment(r)
	}
	if err != nil {
		if r.Tap != nil {
			r.Tap.Close()
		}
		return nil, nil, errors.Join(err, undo.Run())
	}
	undo.Release()
	clock.Done("record")
	r.steps = clock.Steps()
	a := r.Attachment
	return &a, lock, nil
}

// lockClean takes the lock of an attachment of which there is nothing. If there is something, the sandbox's last run was killed: its caller
// is the only one who may run it now.
func (n *Networks) lockClean(ctx context.Context, id string) (*os.File, error) {
	for range 2 {
		lock, err := n.lockAttachment(id, lockPatience)
		if err != nil {
			return nil, err
		}
		_, err = n.loadAttachment(id)
		if errors.Is(err, fs.ErrNotExist) {
			if err := removeNetNS(n.path(netnsDir, id)); err != nil {
				return nil, errors.Join(err, lock.Close())
			}
			return lock, nil
		}
		if err := n.remove(ctx, id, lock); err != nil {
			return nil, err
		}
	}
	return nil, errBusy
}

// undoPatience bounds the taking back of an attachment that could not be made.
const undoPatience = time.Minute

// rootless is nat without root: guests of all kinds of hosts see the same, only spore-net dials from elsewhere.
func (n *Networks) rootless(sandbox string, c Class) *Attachment {
	from := hostResolver(n.cfg.resolvConf, false)
	a := &Attachment{ID: newID(), Sandbox: sandbox, Choice: c.Choice, Mediated: true, MTU: c.MTU, DNS: from.servers, Search: from.search}
	if a.MTU == 0 {
		a.MTU = 1500
	}
	return a
}

// begin writes the record of an attachment, before there is anything of it, and has its network ready.
func (n *Networks) begin(ctx context.Context, r *record) (Network, error) {
	if r.Choice.Kind == KindCNI {
		var err error
		if r.List, err = findList(n.cfg.Lists, r.Choice.Name); err != nil {
			return Network{}, err
		}
		return Network{Choice: r.Choice}, n.saveAttachment(*r)
	}
	unlock, err := n.lock()
	if err != nil {
		return Network{}, err
	}
	defer unlock()
	if _, err := netlink.LinkByName(n.bridgeName(r.Choice)); err != nil && !tableless(r.Choice.Kind) {
		unlockHost, err := lockHost()
		if err != nil {
			return Network{}, err
		}
		defer unlockHost()
	}
	net, err := n.ensure(r.Choice)
	if err != nil {
		return net, err
	}
	if r.List, err = generate(net, n.path(addressesDir)); err != nil {
		return net, err
	}
	r.Bridge = net.Bridge
	if err := n.saveAttachment(*r); err != nil { // from now on the bridge is wanted
		return net, err
	}
	if tableless(net.Kind) {
		link, err := netlink.LinkByName(net.Bridge)
		if err == nil && link.Type() != "bridge" {
			err = fmt.Errorf("it is a %s", link.Type())
		}
		if err != nil {
			return net, fmt.Errorf("bridge %s of the host: %w", net.Bridge, err)
		}
		return net, nil
	}
	return net, n.raiseBridge(ctx, net, n.nameservers(net).servers)
}

// nameservers returns those that a network's sandboxes are to ask.
func (n *Networks) nameservers(net Network) resolver {
	switch {
	case len(net.DNS) > 0:
		return resolver{servers: net.DNS}
	case net.Kind == KindNAT:
		return hostResolver(n.cfg.resolvConf, true)
	}
	return resolver{}
}

// furnish makes the namespace and all that is in it.
func (n *Networks) furnish(ctx context.Context, lock *os.File, net Network, c Class, r *record, clock *timing.Clock) error {
	if err := makeNetNS(r.NetNS); err != nil {
		return err
	}
	clock.Done("namespace")
	from := n.nameservers(net)
	r.DNS, r.Search = from.servers, from.search
	if err := n.addCNI(ctx, lock, r); err != nil {
		return err
	}
	clock.Done("CNI ADD")
	if net.Kind == KindInternal || net.Kind == KindHostOnly { // host-local reserves an address for one, and says so
		r.Gateways, r.Routes = nil, nil
	}
	if c.Mediated {
		return inNetNS(r.NetNS, func() error { return r.settle(c.MTU) })
	}
	if len(r.Addresses) == 0 {
		return errNoAddress
	}
	return inNetNS(r.NetNS, func() error { return r.join(ctx, c.MTU, clock) })
}

// settle finishes the namespace of a mediated attachment: its MTU and its loopback interface. It runs there.
func (r *record) settle(mtu int) error {
	link, err := r.measure(mtu)
	if err != nil {
		return err
	}
	if mtu != 0 {
		if err := netlink.LinkSetMTU(link, r.MTU); err != nil {
			return fmt.Errorf("MTU of %s: %w", guestInterface, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	return nil
}

// measure finds out the MAC and the MTU of the plugin's interface, in its namespace.
func (r *record) measure(mtu int) (netlink.Link, error) {
	link, err := netlink.LinkByName(guestInterface)
	if err != nil {
		return nil, fmt.Errorf("interface %s of the plugin: %w", guestInterface, err)
	}
	r.MAC, r.MTU = MAC(link.Attrs().HardwareAddr), link.Attrs().MTU
	switch {
	case len(r.MAC) != 6:
		return nil, fmt.Errorf("interface %s of the plugin: it is not Ethernet", guestInterface)
	case mtu > r.MTU:
		return nil, fmt.Errorf("MTU %d: the network's is %d", mtu, r.MTU)
	case mtu != 0:
		r.MTU = mtu
	}
	return link, nil
}

// join makes the tap and joins it to the plugin's interface, in its namespace. The interface loses its addresses: they are the guest's, and
// the namespace itself must neither answer nor ask for them.
func (r *record) join(ctx context.Context, mtu int, clock *timing.Clock) error {
	link, err := r.measure(mtu)
	if err != nil {
		return err
	}
	if r.Tap, err = makeTap(tapInterface); err != nil {
		return err
	}
	r.Offload = true
	tap, err := netlink.LinkByName(tapInterface)
	if err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	for _, name := range []string{guestInterface, tapInterface} {
		if err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	if err := dropAddresses(link); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(tap, r.MTU); err != nil {
		return fmt.Errorf("MTU of tap: %w", err)
	}
	clock.Done("tap")
	if err := loadRules(ctx, guestRules(r.MAC, r.Addresses)); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("tap up: %w", err)
	}
	clock.Done("filter")
	return nil
}

// dropAddresses removes the addresses of an interface, and its routes with them.
func dropAddresses(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(link, &a))
	}
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
	}
	return nil
}
