package sandbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"time"

	"spore/agent"
	"spore/snapshot"
	"spore/vmm/api"
)

// How long a guest may take until its agent answers. The limits are generous: the wait only has to end.
const (
	bootLimit = 2 * time.Minute
	wakeLimit = 30 * time.Second
)

// rise makes the guest ready for its command: it wakes from what the sandbox was made for, or boots. A template is no more
// than a saving of time: one that does not wake costs its own life and some of it, not the command.
func (v *supervisor) rise() error {
	if v.from == "" {
		return v.boot()
	}
	from, err := snapshot.Open(v.from)
	if err == nil {
		err = v.wake(from)
	}
	if err == nil || v.ctx.Err() != nil || v.host.Templates == nil || !v.host.Templates.owns(v.from) {
		return err
	}
	v.host.log().Warn("a template does not wake: it is removed, and the guest boots", "template", v.from, "err", err)
	if v.machine != nil {
		v.machine.kill()
		v.machine = nil
	}
	if v.base != nil { // it was opened before the guest failed to answer
		v.base.Close()
		v.base = nil
	}
	if from != nil {
		err = from.Remove()
		v.host.log().Debug("remove template", "err", err)
	}
	return v.boot()
}

// launch starts the machine and returns a context that ends with it.
func (v *supervisor) launch(from *snapshot.Dormant, limit time.Duration) (context.Context, func(), error) {
	if err := v.openDisk(from); err != nil {
		return nil, nil, err
	}
	m, err := launch(v.sb.Config, v.host, resources{v.disk, v.connection()}, from)
	if err != nil {
		return nil, nil, err
	}
	v.machine = m
	v.clock.Done("launch")
	v.watch.note(func(s *Stamps) *int64 { return &s.VMM })
	ctx, cancel := context.WithTimeoutCause(v.ctx, limit, fmt.Errorf("the guest was not ready within %s", limit))
	ctx, gone := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-m.done:
			gone(errGone)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { gone(nil); cancel() }, nil
}

// wake makes a machine of a dormant one and tells its guest who it is.
func (v *supervisor) wake(from *snapshot.Dormant) error {
	ctx, end, err := v.launch(from, wakeLimit)
	if err != nil {
		return err
	}
	defer end()
	if v.base, err = from.OpenMemory(); err != nil {
		return err
	}
	if err := v.identify(ctx, v.sb.Config.Hostname); err != nil {
		return fmt.Errorf("wake guest: %w", err)
	}
	v.clock.Done("wake")
	if f, err := from.OpenHot(); err == nil {
		f.Close()
	} else if v.host.Templates != nil && v.host.Templates.owns(from.Dir()) {
		v.learnFrom = from
	}
	return nil
}

// learn notes which pages the first guest that woke from a template has written by the time its command has started: those
// that wake after it have them copied beforehand. That it cannot is no loss.
func (v *supervisor) learn() {
	if v.learnFrom == nil {
		return
	}
	err := v.learnFrom.NoteHot(func(f *os.File) error {
		_, err := v.machine.requestWithPages(v.ctx, api.Request{Op: api.OpHot}, f)
		return err
	})
	v.host.log().Debug("learn hot pages", "err", err)
}

// identify makes the guest this sandbox's and no other's, before any program runs in it.
func (v *supervisor) identify(ctx context.Context, hostname string) error {
	network, err := v.told(ctx)
	if err != nil {
		return err
	}
	r := agent.Resumed{Hostname: hostname, Pids: v.sb.Config.Pids, Entropy: seed(), Now: time.Now().UnixNano(), Network: network}
	return agent.Resume(ctx, v.reach, r)
}

// seedSize is how much of the host's randomness a guest starts with, in bytes.
const seedSize = 64

func seed() []byte {
	b := make([]byte, seedSize)
	rand.Read(b) // never fails, see crypto/rand
	return b
}

// boot waits for the agent to call and tells it what the guest is to be. A guest that leaves a template is nobody's until
// it has been saved.
func (v *supervisor) boot() error {
	ctx, end, err := v.launch(nil, bootLimit)
	if err != nil {
		return err
	}
	defer end()
	l, err := v.machine.broker.Listen(agent.ControlPort)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := accept(ctx, l)
	if err != nil {
		return fmt.Errorf("wait for the agent: %w", err)
	}
	v.clock.Done("guest kernel")
	leaves, hostname := v.mayLeaveTemplate(), v.sb.Config.Hostname
	if leaves {
		hostname = nobodysName
	}
	if err := v.handshake(ctx, conn, hostname); err != nil {
		conn.Close()
		return fmt.Errorf("set up the guest: %w", err)
	}
	v.clock.Done("guest set-up")
	if !leaves {
		return nil
	}
	if err := v.leaveTemplate(ctx); err != nil {
		return err
	}
	return v.identify(ctx, v.sb.Config.Hostname)
}

// nobodysName is the host name of a guest that is no sandbox's yet.
const nobodysName = "spore"

// handshake tells the agent what the guest is to be.
func (v *supervisor) handshake(ctx context.Context, conn net.Conn, hostname string) error {
	cfg := v.sb.Config
	network, err := v.told(ctx)
	if err != nil {
		return err
	}
	s := agent.Setup{
		Hostname: hostname, Entropy: seed(), Now: time.Now().UnixNano(), Lower: "vda", Upper: "vdb",
		ReadOnly: cfg.ReadOnly, Pids: cfg.Pids, Network: network,
	}
	if cfg.Root == RootPmem {
		s.Lower, s.Upper, s.DAX = "pmem0", "vda", true
	}
	_, err = agent.Handshake(ctx, conn, s)
	return err
}

// accept is l.Accept with an end.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	conn, err := l.Accept()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return conn, err
}

// mayLeaveTemplate reports whether a guest that boots is one that others could wake from.
func (v *supervisor) mayLeaveTemplate() bool {
	cfg := v.sb.Config
	return v.host.Templates != nil && v.fresh && !cfg.Cold && !cfg.DebugConsole
}

// leaveTemplate saves a guest that has just booted for those who come after. That this cannot be done is no reason not to
// run the command; that the guest does not go on is.
func (v *supervisor) leaveTemplate(ctx context.Context) error {
	draft, lock, beginErr := v.host.Templates.begin(v.sb.Config, v.host)
	if beginErr == nil {
		defer lock.Close()
		defer draft.Discard()
	}
	if err := v.prepare(ctx); err != nil {
		return err
	}
	if beginErr != nil {
		v.host.log().Debug("no template is left", "err", beginErr)
		return nil
	}
	// What a wake will ask for is asked once now: what it builds and touches for the first time need not be later.
	if err := v.identify(ctx, nobodysName); err != nil {
		return err
	}
	if err := agent.Rehearse(ctx, v.reach); err != nil {
		return err
	}
	if err := agent.Sync(ctx, v.reach); err != nil {
		return err
	}
	s, err := v.save(ctx, draft, false)
	var template *snapshot.Dormant
	if err == nil {
		template, err = draft.Publish(v.spec())
	}
	if err == nil {
		v.host.log().Debug("huge pages for the template", "err", template.CollapseMemory())
	}
	if err != nil {
		if !s.goesOn {
			return err
		}
		v.host.log().Warn("no template is left", "err", err)
	}
	v.clock.Done("template")
	return nil
}

// prepare runs the command that is to be over, or at work, before the template is taken.
func (v *supervisor) prepare(ctx context.Context) error {
	cfg := v.sb.Config
	if len(cfg.Prepare) == 0 {
		return nil
	}
	e := agent.Exec{Args: cfg.Prepare, Env: cfg.Env, Dir: cfg.Dir, UID: cfg.User.UID, GID: cfg.User.GID, Groups: cfg.User.Groups}
	said := &tail{limit: 4 << 10}
	p, err := agent.Start(ctx, v.reach, e, agent.Streams{Stdout: said, Stderr: said})
	if err != nil {
		return fmt.Errorf("--prepare: %w", err)
	}
	exit, err := p.Wait()
	if err != nil {
		return fmt.Errorf("--prepare: %w", err)
	}
	if exit.Code != 0 || exit.Signal != 0 {
		return fmt.Errorf("--prepare: it ended with code %d, signal %d: %s", exit.Code, exit.Signal, said)
	}
	v.clock.Done("prepare")
	return nil
}

// spec is the shape of this sandbox's machine.
func (v *supervisor) spec() snapshot.Spec {
	cfg := v.sb.Config
	s := snapshot.Spec{CPUs: cfg.CPUs, Memory: cfg.Memory, Disk: cfg.Disk}
	if p := v.command.get(); p != nil {
		s.Main = p.ID()
	}
	return s
}
