package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
	"spore/snapshot"
)

func forkCommand() *cli.Command {
	return &cli.Command{
		Name: "fork", Usage: "make running copies of a running sandbox, which does not notice", ArgsUsage: "SANDBOX",
		Description: "Each copy has the memory, the disk and the running programs of the original at one moment, and a name, an\n" +
			"identity and random numbers of its own. The copies of NAME are NAME-1, NAME-2, …; those of a sandbox without a\n" +
			"name have none.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "n", Usage: "make `N` copies", Value: 1},
			&cli.StringFlag{Name: "name", Usage: "call the copies `NAME`-1, NAME-2, …, or NAME if there is one"},
			jsonFlag(),
		},
		Action: onSandboxHost(forkAction),
	}
}

func pauseCommand() *cli.Command {
	return &cli.Command{
		Name: "pause", Usage: "make sandboxes stand still", ArgsUsage: "SANDBOX...",
		Action: onSandboxHost(func(c *cli.Context) error {
			return each(c, func(ctx context.Context, sb *sandbox.Sandbox) error { return sb.Pause(ctx) })
		}),
	}
}

func resumeCommand() *cli.Command {
	return &cli.Command{
		Name: "resume", Aliases: []string{"unpause"}, Usage: "let paused sandboxes go on", ArgsUsage: "SANDBOX...",
		Action: onSandboxHost(func(c *cli.Context) error {
			return each(c, func(ctx context.Context, sb *sandbox.Sandbox) error { return sb.Resume(ctx) })
		}),
	}
}

// maxForks bounds fork -n.
const maxForks = 10000

func forkAction(c *cli.Context) error {
	n := c.Int("n")
	if n < 1 || n > maxForks {
		return usagef(c, "-n %d: use 1 to %d", n, maxForks)
	}
	parent, err := find(c)
	if err != nil {
		return err
	}
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	pending, err := store.Begin()
	if err != nil {
		return err
	}
	defer pending.Discard() // those that have woken keep what they need of it open
	if _, err := parent.Save(c.Context, pending.Dir, true); err != nil {
		return err
	}
	from, err := snapshot.Open(pending.Dir)
	if err != nil {
		return err
	}
	made, err := forks(c, parent, host, from, n)
	if c.Bool("json") {
		return errors.Join(printJSON(c.App.Writer, made), err)
	}
	for _, sb := range made {
		fmt.Fprintln(c.App.Writer, sb.ID)
	}
	return err
}

// forksAtOnce is how many copies are started at the same time.
const forksAtOnce = 8

// forks makes and starts n copies and returns those that run.
func forks(c *cli.Context, parent *sandbox.Sandbox, host sandbox.Host, from *snapshot.Dormant, n int) ([]sandbox.Config, error) {
	name := firstOf(c.String("name"), parent.Config.Name)
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	made, errs := []sandbox.Config{}, []error(nil)
	slots := make(chan struct{}, forksAtOnce)
	for i := range n {
		cfg := parent.Config
		cfg.ID, cfg.Hostname, cfg.Name = "", "", ""
		if name != "" {
			cfg.Name = fmt.Sprintf("%s-%d", name, i+1)
			if n == 1 && c.IsSet("name") {
				cfg.Name = name
			}
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			sb, err := startFrom(c, sandboxes, host, cfg, from, from.Spec.Main, "")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			made = append(made, sb.Config)
		})
	}
	wg.Wait()
	return made, errors.Join(errs...)
}

// startFrom makes a sandbox that wakes from a dormant machine and starts it in the background.
func startFrom(c *cli.Context, store *sandbox.Store, host sandbox.Host, cfg sandbox.Config, from *snapshot.Dormant, main uint64, id string) (*sandbox.Sandbox, error) {
	sb, err := store.Create(cfg, originOf(c, from, main, id))
	if err != nil {
		return nil, err
	}
	if err := startSupervisor(c, sb, host); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox %s: %w", sb.Ref(), err), sb.Remove())
	}
	return sb, nil
}

func originOf(c *cli.Context, from *snapshot.Dormant, main uint64, id string) sandbox.Origin {
	return sandbox.Origin{
		From: from.Dir(), Main: main, Snapshot: id,
		Writable: func(path string) error { return from.NewDisk(c.Context, path) },
	}
}

// dormantOf verifies a snapshot and returns it with the configuration of what it was taken of, as another sandbox's.
func dormantOf(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest) (*snapshot.Dormant, sandbox.Config, error) {
	var cfg sandbox.Config
	from, err := store.Admit(c.Context, m)
	if err != nil {
		return nil, cfg, err
	}
	if err := json.Unmarshal(m.Origin, &cfg); err != nil {
		return nil, cfg, fmt.Errorf("snapshot %s: %w", m.Ref(), err)
	}
	cfg.ID = ""
	if cfg.JailWithout, err = allowedMissing(c); err != nil {
		return nil, cfg, err
	}
	return from, cfg, imageThere(cfg)
}

// createFrom makes the sandbox of run --from: what the snapshot was taken of, under the flags that make sense for it.
func createFrom(c *cli.Context, args []string) (*sandbox.Sandbox, error) {
	store, err := openSnapshots(c)
	if err != nil {
		return nil, err
	}
	m, err := store.Find(c.String("from"))
	if err != nil {
		return nil, err
	}
	from, cfg, err := dormantOf(c, store, m)
	if err != nil {
		return nil, err
	}
	cfg.Hostname, cfg.Name = c.String("hostname"), c.String("name")
	cfg.AutoRemove, cfg.Stdin, cfg.Prepare, cfg.Cold = c.Bool("rm"), c.Bool("interactive"), nil, false
	if c.IsSet("timeout") {
		cfg.Timeout = c.Duration("timeout")
	}
	if cfg.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return nil, err
	}
	main := from.Spec.Main
	if len(args) > 0 {
		cfg.Args, cfg.TTY, main = args, c.Bool("tty"), 0
	}
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	return sandboxes.Create(cfg, originOf(c, from, main, m.ID))
}
