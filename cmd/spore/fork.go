package main

import (
	"errors"
	"fmt"

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
	open := func() (*snapshot.Store, error) { return openSnapshots(c) }
	if parent.Config.MemoryDisk { // what is not to be on a disk stays off it
		open = openVolatile
	}
	store, err := open()
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

// forksTogether is how many copies have one supervisor between them: most of what a supervisor takes is its program's own. They end
// together if it is killed.
const forksTogether = 16

// forks makes and starts n copies and returns those that run.
func forks(c *cli.Context, parent *sandbox.Sandbox, host sandbox.Host, from *snapshot.Dormant, n int) ([]sandbox.Config, error) {
	name := firstOf(c.String("name"), parent.Config.Name)
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	var batch []*sandbox.Sandbox
	made, errs := []sandbox.Config{}, []error(nil)
	for i := range n {
		cfg := parent.Config
		cfg.ID, cfg.Hostname, cfg.Name, cfg.Network = "", "", "", cfg.Network.Copied()
		if name != "" {
			cfg.Name = fmt.Sprintf("%s-%d", name, i+1)
			if n == 1 && c.IsSet("name") {
				cfg.Name = name
			}
		}
		sb, err := sandboxes.Create(cfg, originOf(c, from, from.Spec.Main, ""))
		if err != nil {
			errs = append(errs, err)
		} else {
			batch = append(batch, sb)
		}
		if len(batch) < forksTogether && i < n-1 {
			continue
		}
		for i, err := range startAll(c, host, batch) {
			if err != nil {
				errs = append(errs, err)
			} else {
				made = append(made, batch[i].Config)
			}
		}
		batch = nil
	}
	return made, errors.Join(errs...)
}

// startAll starts sandboxes in the background, under one supervisor. Those that do not start are removed.
func startAll(c *cli.Context, host sandbox.Host, all []*sandbox.Sandbox) []error {
	errs := startSupervisors(c, host, all)
	for i, err := range errs {
		if err != nil {
			errs[i] = errors.Join(fmt.Errorf("sandbox %s: %w", all[i].Ref(), err), all[i].Remove())
		}
	}
	return errs
}

// startFrom makes a sandbox that wakes from a dormant machine and starts it in the background.
func startFrom(c *cli.Context, store *sandbox.Store, host sandbox.Host, cfg sandbox.Config, from *snapshot.Dormant, main uint64, id string) (*sandbox.Sandbox, error) {
	sb, err := store.Create(cfg, originOf(c, from, main, id))
	if err != nil {
		return nil, err
	}
	if err := startAll(c, host, []*sandbox.Sandbox{sb})[0]; err != nil {
		return nil, err
	}
	return sb, nil
}
