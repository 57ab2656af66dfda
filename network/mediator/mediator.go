// Package mediator is the supervisor's side of spore-net: it starts the process in its jail, in the network namespace that it is to
// dial from, tells it its configuration, and asks it things. It links no TCP/IP stack.
package mediator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/cleanup"
	"spore/jailer"
	"spore/network/api"
	"spore/network/policy"
)

// Config says how a spore-net is started. Nothing in it depends on the sandbox but NetNS, so it may be started ahead.
type Config struct {
	Exe     string         // path of spore-net
	NetNS   string         // path of the network namespace to dial from; "" is the caller's
	ID      string         // what the jail's identity is chosen by: the sandbox's or the attachment's id
	Cgroup  *os.File       // cgroup v2 directory that it is born into; nil is the caller's, if Without has jailer.Cgroup
	Without []jailer.Layer // layers of the jail that may be missing
	Log     *slog.Logger   // nil is silent. What spore-net logs goes there too
}

// Files are what a configuration brings beside its text. All stay the caller's.
type Files struct {
	Audit     *os.File   // open for appending, or a pipe; nil is none
	Published []*os.File // one for each of api.Config.Published, whose File fields need not be set
}

// stopGrace is how long a spore-net may take to end after it was told to, before it is killed.
const stopGrace = 3 * time.Second

// Process is a running spore-net. Methods may be called by several goroutines.
type Process struct {
	inmate *jailer.Process
	said   *tail    // standard error
	logIn  *os.File // what it logs to; its own once it is configured

	done chan struct{} // closed when the process is gone; died is then final
	died error
	work sync.WaitGroup

	mu      sync.Mutex // one request at a time, and guards the rest
	config  *os.File   // our end of the socket that brings the configuration
	control *os.File   // nil until Configure
	frames  *os.File
	ca      []byte
	next    uint64
	closing bool
}

// Start launches a spore-net and configures it: Launch and Configure in one.
func Start(ctx context.Context, c Config, network api.Config, f Files) (*Process, error) {
	p, err := Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := p.Configure(ctx, network, f); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Launch starts a spore-net that waits for its configuration. The caller closes it. It takes no memory to speak of while it waits.
func Launch(ctx context.Context, c Config) (_ *Process, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	exe, err := os.Open(c.Exe)
	if err != nil {
		return nil, fmt.Errorf("start spore-net: %w", err)
	}
	defer exe.Close()
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start spore-net: %w", err), undo.Run())
		}
	}()
	ours, theirs, err := pair(unix.SOCK_STREAM, "config")
	if err != nil {
		return nil, err
	}
	undo.Push(ours.Close)
	defer theirs.Close()
	stderr, stderrIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	undo.Push(stderr.Close)
	defer stderrIn.Close()
	log, logIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	undo.Push(log.Close)
	undo.Push(logIn.Close)
	p := &Process{config: ours, logIn: logIn, said: &tail{}, done: make(chan struct{})}
	if p.inmate, err = jail(c, exe, theirs, stderrIn); err != nil {
		return nil, err
	}
	undo.Release()
	p.work.Go(func() { p.said.read(stderr) })
	p.work.Go(func() { relay(c.Log, log) })
	go p.wait()
	return p, nil
}

// wait settles p when the process is gone. Close and Done wait for it.
func (p *Process) wait() {
	st, err := p.inmate.Wait()
	unix.Close(p.inmate.PidFD)
	_ = p.logIn.Close() // it was closed when the configuration was sent, if there was one
	p.work.Wait()
	p.mu.Lock()
	if err == nil && !st.Success() && (!p.closing || st.ExitCode() > 0) { // what we kill, we know of
		err = fmt.Errorf("spore-net ended: %v%s", st, p.said.quote())
	}
	p.mu.Unlock()
	p.died = err
	close(p.done)
}

// Frames is the VMM's end: what api.Net.File of a machine is, with Offload set. It is made by Configure, and closed by Close; the
// VMM has a duplicate.
func (p *Process) Frames() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frames
}

// CA is the certificate, in PEM, that the guest must trust; nil without secrets.
func (p *Process) CA() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ca
}

// Missing are the layers that its jail lacks.
func (p *Process) Missing() []jailer.Layer { return p.inmate.Missing }

// PID is the process's number, for measurements.
func (p *Process) PID() int { return p.inmate.Pid }

// Stats returns the figures so far.
func (p *Process) Stats(ctx context.Context) (api.Stats, error) {
	r, err := p.ask(ctx, api.Request{Op: api.OpStats})
	if err != nil {
		return api.Stats{}, err
	}
	if r.Stats == nil {
		return api.Stats{}, errors.New("spore-net answered without figures")
	}
	return *r.Stats, nil
}

// Explain says what would become of a flow to address, with what the guest has resolved by now.
func (p *Process) Explain(ctx context.Context, address string) (policy.Explanation, error) {
	r, err := p.ask(ctx, api.Request{Op: api.OpExplain, Address: address})
	if err != nil {
		return policy.Explanation{}, err
	}
	if r.Explanation == nil {
		return policy.Explanation{}, errors.New("spore-net answered without an explanation")
	}
	return *r.Explanation, nil
}

// Reset drops every flow and all that the resolver has learnt: the machine behind Frames is another one now.
func (p *Process) Reset(ctx context.Context) error {
	_, err := p.ask(ctx, api.Request{Op: api.OpReset})
	return err
}

// Done is closed when the process has ended, wanted or not. A guest without its spore-net has no network.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close ends the process, waits for it, and returns what it died of if that was not our wish.
func (p *Process) Close() error {
	select {
	case <-p.done: // by itself
	default:
		p.mu.Lock()
		p.closing = true
		p.hangUp()
		p.mu.Unlock()
		select {
		case <-p.done:
		case <-time.After(stopGrace):
			_ = p.inmate.Kill() // it has just ended if this fails
			<-p.done
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangUp()
	if p.frames != nil {
		p.frames.Close()
		p.frames = nil
	}
	return p.died
}

// hangUp closes the sockets whose end ends the process.
func (p *Process) hangUp() {
	for _, f := range []**os.File{&p.config, &p.control} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
}
