// Package mediator is the supervisor's side of spore-net: it starts the process in its jail, in the network namespace that it is to
// dial from, tells it its configuration, and asks it things. It links no TCP/IP stack.
package mediator

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"spore/network/api"
	"spore/network/policy"
)

// Files are what a configuration brings beside its text. All stay the caller's.
type Files struct {
	Frames    *os.File   // the forwarder's end of what Frames made
	Audit     *os.File   // open for appending, or a pipe; nil is none
	Published []*os.File // one for each of api.Config.Published, whose File fields need not be set
}

// stopGrace is how long a spore-net may take to end after it was told to, before it is killed.
const stopGrace = 3 * time.Second

// Process is a running spore-net. Methods may be called by several goroutines.
type Process struct {
	Handle
	inmate *inmate
	said   *tail // standard error

	done chan struct{} // closed when the process is gone; died is then final
	died error
	work sync.WaitGroup

	mu      sync.Mutex // one request at a time, and guards the rest
	control *os.File   // nil when it is closed
	ca      []byte
	next    uint64
	closing bool
}

// wait settles p when the process is gone. Close and Done wait for it.
func (p *Process) wait() {
	<-p.inmate.ended
	p.work.Wait()
	p.mu.Lock()
	p.died = p.inmate.verdict(p.closing, p.said.quote())
	p.mu.Unlock()
	p.inmate.pidFD.Close()
	close(p.done)
}

// CA is the certificate, in PEM, that the guest must trust; nil without secrets.
func (p *Process) CA() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ca
}

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

// Reset drops every flow and all that the resolver has learnt: the machine behind the frames is another one now.
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
		p.inmate.endSoon()
		<-p.done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangUp()
	return p.died
}

// hangUp closes the socket whose end ends the process.
func (p *Process) hangUp() {
	if p.control != nil {
		p.control.Close()
		p.control = nil
	}
}
