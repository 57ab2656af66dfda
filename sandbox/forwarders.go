package sandbox

import (
	"context"
	"errors"
	"slices"
	"sync"

	"spore/jailer"
	"spore/network"
	"spore/network/mediator"
)

// forwarders makes the places of a pool on networks, each mediated one with a spore-net that waits in it. The pool is their parent:
// it takes away what is left of them, whoever has used them.
type forwarders struct {
	network.Attacher
	host   Host
	prefix string // of their cgroups' names

	mu      sync.Mutex
	without []jailer.Layer               // that the jail of the next may lack
	ready   map[string]*mediator.Waiting // by the attachment's id
}

// Prepare makes a place. One without its spore-net is a place all the same: whoever takes it starts one.
func (f *forwarders) Prepare(ctx context.Context, c network.Class) (*network.Attachment, error) {
	a, err := f.Attacher.Prepare(ctx, c)
	if err != nil || !a.Mediated {
		return a, err
	}
	w, err := f.launch(ctx, a)
	if err != nil {
		f.host.log().Warn("start spore-net ahead", "network", c.Choice.String(), "err", err)
		return a, nil
	}
	f.mu.Lock()
	f.ready[a.ID] = w
	f.mu.Unlock()
	return a, nil
}

// Discard removes a place that nobody took.
func (f *forwarders) Discard(ctx context.Context, a *network.Attachment) error {
	var err error
	if w := f.take(a.ID); w != nil {
		err = w.Close()
	}
	return errors.Join(err, f.Attacher.Discard(ctx, a))
}

// take returns the spore-net that waits in a place, or nil. It is the caller's.
func (f *forwarders) take(id string) *mediator.Waiting {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.ready[id]
	delete(f.ready, id)
	return w
}

// allow says which layers the jails of those to come may lack: what the last sandbox allowed that took a place.
func (f *forwarders) allow(without []jailer.Layer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.without = slices.Clone(without)
}

// launch starts a spore-net in a place, and sees to its remains.
func (f *forwarders) launch(ctx context.Context, a *network.Attachment) (*mediator.Waiting, error) {
	f.mu.Lock()
	without := f.without
	f.mu.Unlock()
	group, err := netGroup(f.prefix+a.ID, without)
	if err != nil {
		return nil, err
	}
	start := mediator.Config{Exe: f.host.Net, NetNS: a.NetNS, ID: a.ID, Without: without}
	if group != nil {
		start.Cgroup = group.Dir()
	}
	w, err := mediator.Launch(ctx, start)
	if err != nil {
		return nil, errors.Join(err, release(group))
	}
	go func() {
		<-w.Ended()
		if err := release(group); err != nil {
			f.host.log().Warn("release the jail of a spore-net", "err", err)
		}
	}()
	return w, nil
}
