package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/network"
	"spore/sandbox"
)

func poolCommand() *cli.Command {
	return &cli.Command{
		Name: "pool", Usage: "keep shells and places on networks ready, so that sandboxes wake sooner",
		Description: "A shell is a jailed VMM with an empty machine. A sandbox that wakes from a template or a snapshot takes one, if one\n" +
			"of its CPUs and memory stands ready, uses it once, and another is started in the background.",
		Subcommands: []*cli.Command{
			{
				Name: "start", Usage: "start the pool, unless it runs",
				Flags: []cli.Flag{
					&cli.IntFlag{Name: "depth", Usage: "keep `N` shells of each class ready", Value: 2},
					&cli.IntFlag{Name: "max", Usage: "at most `N` in all classes", Value: 16},
					&cli.DurationFlag{Name: "idle", Usage: "give up a class that nobody wanted for `TIME` (0: never)", Value: 10 * time.Minute},
					&cli.IntFlag{Name: "cpus", Usage: "begin with the class of `N` virtual CPUs", Value: sandbox.DefaultCPUs},
					&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Usage: "and that much memory", Value: "512m"},
					&cli.StringFlag{Name: "network", Usage: "keep places on that `NETWORK` ready too, as --network of run has it"},
					withoutFlag(),
				},
				Action: onSandboxHost(poolStart),
			},
			{Name: "status", Usage: "show what stands ready, and how often that was enough", Flags: []cli.Flag{jsonFlag()}, Action: onSandboxHost(poolStatus)},
			{Name: "stop", Usage: "give up the shells; sandboxes that run in some go on", Action: onSandboxHost(func(c *cli.Context) error {
				return sandbox.StopPool(poolDir(c))
			})},
			{Name: "serve", Hidden: true, Flags: []cli.Flag{
				&cli.IntFlag{Name: "depth"}, &cli.IntFlag{Name: "max"}, &cli.DurationFlag{Name: "idle"},
				&cli.IntFlag{Name: "cpus"}, &cli.StringFlag{Name: "memory"}, &cli.StringFlag{Name: "network"}, withoutFlag(),
			}, Action: servePool},
		},
	}
}

func poolDir(c *cli.Context) string { return filepath.Join(stateDir(c), "pool") }

// poolReady is what a pool says when its first shells stand ready. Anything else is an error.
const poolReady = "ready\n"

// poolStart runs "spore pool serve" in the background and waits until its first shells stand ready.
func poolStart(c *cli.Context) error {
	if _, _, err := sandbox.AskPool(poolDir(c)); err == nil {
		return nil
	}
	args := []string{
		"serve", "--network", c.String("network"), "--depth", fmt.Sprint(c.Int("depth")), "--max", fmt.Sprint(c.Int("max")), "--idle", c.Duration("idle").String(),
		"--cpus", fmt.Sprint(c.Int("cpus")), "--memory", c.String("memory"),
	}
	for _, l := range c.StringSlice("jail-without") {
		args = append(args, "--jail-without", l)
	}
	said, err := startBackground(c, "pool", args...)
	switch {
	case err != nil:
		return err
	case len(said) == 0:
		return errors.New("the pool ended before its first shells stood ready")
	case string(said) != poolReady:
		return errors.New(strings.TrimSpace(string(said)))
	}
	return nil
}

// servePool owns the shells until it is told to stop, and says to whoever started it that they stand ready, or what is wrong.
func servePool(c *cli.Context) error {
	parent := parentFile()
	err := ownPool(c, func() {
		io.WriteString(parent, poolReady)
		settle(parent)
	})
	if err != nil {
		fmt.Fprintln(parent, err) // to nobody, once it has said that it is ready
	}
	return err
}

// ownPool serves until it is told to stop, and calls ready once.
func ownPool(c *cli.Context, ready func()) error {
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	memory, err := parseSize(c.String("memory"))
	if err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	without, err := allowedMissing(c)
	if err != nil {
		return err
	}
	choice, err := network.ParseChoice(c.String("network"))
	if err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(c.Context), unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	pool := sandbox.NewPool(poolDir(c), host, sandbox.PoolConfig{Depth: max(1, c.Int("depth")), Max: max(1, c.Int("max")), Idle: c.Duration("idle")})
	cfg := sandbox.Config{CPUs: c.Int("cpus"), Memory: memory, JailWithout: without}
	first := []sandbox.Class{sandbox.ClassOf(cfg)}
	if !choice.None() {
		cfg.Network = &sandbox.Network{Choice: choice}
		first = append(first, sandbox.ClassOf(cfg))
	}
	var keepErr error
	err = pool.Serve(ctx, func() {
		for _, class := range first {
			keepErr = errors.Join(keepErr, pool.Keep(class))
		}
		if !choice.None() {
			keepErr = errors.Join(keepErr, pool.KeepPlaces(ctx, network.Request{Choice: choice}, without))
		}
		if keepErr != nil {
			stop()
			return
		}
		ready()
	})
	return errors.Join(keepErr, err)
}

func poolStatus(c *cli.Context) error {
	stats, places, err := sandbox.AskPool(poolDir(c))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Shells   []sandbox.ShelfStats `json:"shells"`
			Networks []network.ShelfStats `json:"networks"`
		}{stats, places})
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "CPUS\tMEMORY\tDISK UP TO\tREADY\tHITS\tMISSES")
	for _, s := range stats {
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%d\n", s.CPUs, formatSize(s.Memory), formatSize(s.Disk), s.Ready, s.Hits, s.Misses)
	}
	if len(places) > 0 {
		fmt.Fprintln(w, "NETWORK\tMEDIATED\tMTU\tREADY\tHITS\tMISSES")
	}
	for _, s := range places {
		fmt.Fprintf(w, "%s\t%v\t%d\t%d\t%d\t%d\n", s.Choice, s.Mediated, s.MTU, s.Ready, s.Hits, s.Misses)
	}
	return w.Flush()
}
