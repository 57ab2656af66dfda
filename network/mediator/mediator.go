// Package mediator is the supervisor's side of spore-net: it starts the process in its jail, in the network namespace that it is to
// dial from, tells it its configuration, and asks it things. It links no TCP/IP stack.
package mediator

import (
	"context"
	"errors"
	"log/slog"
	"os"

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

// Process is a running spore-net. Methods may be called by several goroutines.
type Process struct{}

// Start launches a spore-net and configures it: Launch and Configure in one.
func Start(ctx context.Context, c Config, network api.Config, f Files) (*Process, error) {
	return nil, errors.New("start spore-net: not there yet")
}

// Launch starts a spore-net that waits for its configuration. The caller closes it. It takes no memory to speak of while it waits.
func Launch(ctx context.Context, c Config) (*Process, error) {
	return nil, errors.New("start spore-net: not there yet")
}

// Configure gives a launched spore-net its configuration and returns when it is ready for the guest. network's version and all its File
// fields are set here; zero addresses, MACs and MTU become the defaults of package api. An error that the user can mend (a rule, a secret)
// says so; the process has to be closed then.
func (p *Process) Configure(ctx context.Context, network api.Config, f Files) error { return nil }

// Frames is the VMM's end: what api.Net.File of a machine is, with Offload set. It is made by Configure, and closed by Close; the
// VMM has a duplicate.
func (p *Process) Frames() *os.File { return nil }

// CA is the certificate, in PEM, that the guest must trust; nil without secrets.
func (p *Process) CA() []byte { return nil }

// Stats returns the figures so far.
func (p *Process) Stats(ctx context.Context) (api.Stats, error) { return api.Stats{}, nil }

// Explain says what would become of a flow to address, with what the guest has resolved by now.
func (p *Process) Explain(ctx context.Context, address string) (policy.Explanation, error) {
	return policy.Explanation{}, nil
}

// Reset drops every flow and all that the resolver has learnt: the machine behind Frames is another one now.
func (p *Process) Reset(ctx context.Context) error { return nil }

// Done is closed when the process has ended, wanted or not. A guest without its spore-net has no network.
func (p *Process) Done() <-chan struct{} { return nil }

// Close ends the process, waits for it, and returns what it died of if that was not our wish.
func (p *Process) Close() error { return nil }
