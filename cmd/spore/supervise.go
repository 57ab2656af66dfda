package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/sandbox"
)

func superviseCommand() *cli.Command {
	return &cli.Command{
		Name: "supervise", Hidden: true, Usage: "own detached sandboxes (used by run -d, start and fork)", ArgsUsage: "ID...",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "kernel"}},
		Action: supervise,
	}
}

// verdict is what a supervisor says of one of its sandboxes, once, on descriptor 3.
type verdict struct {
	ID    string `json:"id"`
	Error string `json:"error,omitempty"` // why its command does not run; without an ID, why none does
}

// startSupervisor runs a supervisor for one sandbox; see startSupervisors.
func startSupervisor(c *cli.Context, sb *sandbox.Sandbox, host sandbox.Host) error {
	return startSupervisors(c, host, []*sandbox.Sandbox{sb})[0]
}

// startSupervisors runs "spore supervise" in the background, one for all of the sandboxes, and waits until it has said of each that
// its command runs, or why it does not: an error for each, in their order.
func startSupervisors(c *cli.Context, host sandbox.Host, all []*sandbox.Sandbox) []error {
	if len(all) == 0 {
		return nil
	}
	args := []string{"--kernel", host.Kernel}
	for _, sb := range all {
		args = append(args, sb.Config.ID)
	}
	said, err := startBackground(c, "supervise", args...)
	verdicts := map[string]error{"": err}
	for lines := json.NewDecoder(bytes.NewReader(said)); ; {
		var v verdict
		if lines.Decode(&v) != nil {
			break
		}
		verdicts[v.ID] = nil
		if v.Error != "" {
			verdicts[v.ID] = errors.New(v.Error)
		}
	}
	errs := make([]error, len(all))
	for i, sb := range all {
		err, ok := verdicts[sb.Config.ID]
		if !ok {
			err = verdicts[""]
		}
		if !ok && err == nil {
			err = errors.New("the supervisor ended before its command ran: 'spore inspect " + sb.Ref() + "' has the record")
		}
		errs[i] = err
	}
	return errs
}

// startsAtOnce is how many sandboxes of one supervisor are started at the same time.
const startsAtOnce = 8

// supervise owns the sandboxes until their commands have ended. Their streams are the logs and whoever attaches.
func supervise(c *cli.Context) error {
	g := &group{parent: parentFile(), starting: make(chan struct{}, startsAtOnce), pending: c.NArg()}
	host, err := sandboxHost(c)
	if err != nil {
		return errors.Join(err, json.NewEncoder(g.parent).Encode(verdict{Error: err.Error()}))
	}
	store, err := openSandboxes(c)
	if err != nil {
		return errors.Join(err, json.NewEncoder(g.parent).Encode(verdict{Error: err.Error()}))
	}
	g.host = host
	// A session of its own is not hung up with the terminal; what else would end it goes to the commands.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	for _, id := range c.Args().Slice() {
		g.starting <- struct{}{}
		own := make(chan os.Signal, cap(signals))
		g.signals = append(g.signals, own)
		g.work.Go(func() { g.own(context.WithoutCancel(c.Context), store, id, own) })
	}
	go func() {
		for s := range signals {
			for _, own := range g.signals {
				select {
				case own <- s:
				default: // its command has been told often enough
				}
			}
		}
	}()
	g.work.Wait()
	return nil
}

// group is the sandboxes of one supervisor.
type group struct {
	host     sandbox.Host
	work     sync.WaitGroup
	signals  []chan os.Signal
	starting chan struct{} // has a value for each that is not up yet

	mu      sync.Mutex
	parent  *os.File // who started this process, until all has been said
	pending int      // sandboxes of which nothing has been said
}

// settle says how the start of a sandbox went, once.
func (g *group) settle(id string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := verdict{ID: id}
	if err != nil {
		v.Error = err.Error()
	}
	_ = json.NewEncoder(g.parent).Encode(v) // who asked may have gone; the sandbox is there all the same
	if g.pending--; g.pending == 0 {
		settle(g.parent)
	}
}

// own is the life of one sandbox.
func (g *group) own(ctx context.Context, store *sandbox.Store, id string, signals <-chan os.Signal) {
	var once sync.Once
	settled := func(err error) {
		once.Do(func() {
			<-g.starting
			g.settle(id, err)
		})
	}
	sb, err := store.Find(id)
	var outcome sandbox.Outcome
	if err == nil {
		outcome, err = sb.Supervise(ctx, g.host, sandbox.Streams{Signals: signals}, func() { settled(nil) })
	}
	if err == nil {
		err = errors.New(outcome.String())
	}
	settled(err) // if its command has run, that has been said
}
