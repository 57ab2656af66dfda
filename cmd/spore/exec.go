package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/rootfs"
	"spore/sandbox"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name: "exec", Usage: "run another command in a running sandbox", ArgsUsage: "SANDBOX [--] CMD [ARG...]", UseShortOptionHandling: true,
		Description: "Signals are passed on to the command. The third interrupt ends it, also when its guest does not answer.",
		Flags: []cli.Flag{
			rawFlag(),
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "keep standard input open"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set `NAME=VALUE` in the command's environment"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "working `DIR` of the command"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`NAME|UID[:GID]` that the command runs as", DefaultText: "the sandbox's"},
			&cli.DurationFlag{Name: "timeout", Usage: "end the command after `TIME`", Value: sandbox.DefaultTimeout},
		},
		Action: onSandboxHost(execAction),
	}
}

func execAction(c *cli.Context) error {
	sb, err := find(c)
	if err != nil {
		return err
	}
	args := commandArgs(c)
	if len(args) == 0 {
		return usagef(c, "no command")
	}
	e := agent.Exec{
		Args: args, Env: sb.Config.Env, Dir: firstOf(c.String("workdir"), sb.Config.Dir),
		UID: sb.Config.User.UID, GID: sb.Config.User.GID, Groups: sb.Config.User.Groups,
	}
	env, err := parseEnv(c.StringSlice("env"), os.LookupEnv)
	if err != nil {
		return err
	}
	e.Env = mergeEnv(e.Env, env)
	if spec := c.String("user"); spec != "" {
		if err := execAs(c, sb, spec, &e); err != nil {
			return err
		}
	}
	s := sandbox.Streams{Stdout: shown(c, os.Stdout), Stderr: shown(c, os.Stderr)}
	if c.Bool("interactive") {
		s.Stdin = os.Stdin
	}
	restore, err := terminal(&s, c.Bool("tty"))
	if err != nil {
		return err
	}
	defer restore()
	if c.Bool("tty") {
		e.TTY = &s.Size
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	s.Signals = signals
	return execFor(c, sb, e, s)
}

// errExecTimeout is why an exec that ran too long was ended.
var errExecTimeout = errors.New("the command ran longer than --timeout")

func execFor(c *cli.Context, sb *sandbox.Sandbox, e agent.Exec, s sandbox.Streams) error {
	ctx := c.Context
	if d := c.Duration("timeout"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, errExecTimeout)
		defer cancel()
	}
	o, err := sb.Exec(ctx, e, s)
	switch {
	case errors.Is(err, errExecTimeout):
		return &codeError{sandbox.CodeTimeout, err}
	case err != nil:
		return err
	case o.Detail != "":
		fmt.Fprintln(c.App.ErrWriter, "spore:", printable(o.Detail))
	}
	return outcomeError(o)
}

// execAs resolves a user by the image's accounts, as they were when the image was made.
func execAs(c *cli.Context, sb *sandbox.Sandbox, spec string, e *agent.Exec) error {
	store, err := openImages(c)
	if err != nil {
		return err
	}
	image, err := store.Get(sb.Config.ImageDigest)
	if errors.Is(err, rootfs.ErrNotFound) {
		err = fmt.Errorf("--user %s: %w", spec, err)
	}
	if err != nil {
		return err
	}
	u, err := lookupUser(image, spec)
	if err != nil {
		return err
	}
	e.UID, e.GID, e.Groups = u.UID, u.GID, u.Groups
	if u.Home != "" {
		e.Env = mergeEnv(e.Env, []string{"HOME=" + u.Home})
	}
	return nil
}

func startCommand() *cli.Command {
	return &cli.Command{
		Name: "start", Usage: "start sandboxes that were created, or named ones again", ArgsUsage: "SANDBOX...", UseShortOptionHandling: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "attach", Aliases: []string{"a"}, Usage: "stay in the foreground, with the command's streams"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "with --attach, give the command our standard input"},
			&cli.StringFlag{Name: "kernel", Usage: "guest kernel `FILE`", EnvVars: []string{"SPORE_KERNEL"}, DefaultText: "Spore's own"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing of Spore's own but errors"},
		},
		Action: onSandboxHost(func(c *cli.Context) error {
			host, err := sandboxHost(c)
			if err != nil {
				return err
			}
			if !c.Bool("attach") {
				return each(c, func(_ context.Context, sb *sandbox.Sandbox) error { return startSupervisor(c, sb, host) })
			}
			sb, err := find(c)
			if err != nil {
				return err
			}
			sb.Config.Stdin = sb.Config.Stdin && c.Bool("interactive")
			return foreground(c, sb, host)
		}),
	}
}

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "join the streams of a sandbox's command", ArgsUsage: "SANDBOX", UseShortOptionHandling: true,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "no-stdin", Usage: "only watch"}, rawFlag()},
		Action: onSandboxHost(func(c *cli.Context) error {
			sb, err := find(c)
			if err != nil {
				return err
			}
			s := sandbox.Streams{}
			if sb.Config.Stdin && !c.Bool("no-stdin") {
				s.Stdin = os.Stdin
			}
			restore, err := terminal(&s, sb.Config.TTY)
			if err != nil {
				return err
			}
			stdout, stderr := shown(c, os.Stdout), shown(c, os.Stderr)
			if sb.Config.TTY {
				stdout, stderr = os.Stdout, os.Stderr
			}
			err = sb.Attach(c.Context, s.Stdin, stdout, stderr)
			restore()
			if err != nil {
				return err
			}
			o, err := sb.Wait(c.Context)
			if err != nil {
				return err
			}
			return outcomeError(o)
		}),
	}
}

func cpCommand() *cli.Command {
	return &cli.Command{
		Name: "cp", Usage: "copy files and directories into or out of a running sandbox", ArgsUsage: "SANDBOX:PATH DEST | SRC SANDBOX:PATH",
		Action: onSandboxHost(func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "give a source and a destination")
			}
			from, to := c.Args().Get(0), c.Args().Get(1)
			fromRef, fromPath, outward := splitRef(from)
			toRef, toPath, inward := splitRef(to)
			if outward == inward {
				return usagef(c, "exactly one of source and destination is SANDBOX:PATH")
			}
			store, err := openSandboxes(c)
			if err != nil {
				return err
			}
			sb, err := store.Find(firstOf(fromRef, toRef))
			if err != nil {
				return err
			}
			if outward {
				return agent.Get(c.Context, sb.Dial, fromPath, to)
			}
			u := sb.Config.User
			return agent.Put(c.Context, sb.Dial, from, toPath, agent.Owner{UID: int(u.UID), GID: int(u.GID)})
		}),
	}
}

// splitRef reads SANDBOX:PATH. A local path that has a colon is written with a slash before it, as ./a:b.
func splitRef(s string) (ref, path string, ok bool) {
	ref, path, ok = strings.Cut(s, ":")
	if !ok || strings.ContainsRune(ref, '/') || ref == "" {
		return "", "", false
	}
	if !filepath.IsAbs(path) {
		path = "/" + path
	}
	return ref, path, true
}

func statsCommand() *cli.Command {
	return &cli.Command{
		Name: "stats", Usage: "print what running sandboxes use", ArgsUsage: "[SANDBOX...]",
		Flags:  []cli.Flag{jsonFlag(), &cli.BoolFlag{Name: "devices", Usage: "also the device counters, with --json"}},
		Action: onSandboxHost(statsAction),
	}
}

// usage is one row of stats.
type usage struct {
	ID       string                       `json:"id"`
	Name     string                       `json:"name,omitempty"`
	Stats    agent.Stats                  `json:"guest"`
	Counters map[string]map[string]uint64 `json:"devices,omitempty"`
}

// statsLimit bounds how long a guest may take to answer.
const statsLimit = 10 * time.Second

func statsAction(c *cli.Context) error {
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	var found []*sandbox.Sandbox
	if c.NArg() > 0 {
		found, err = findAll(c)
	} else {
		found, err = store.List()
	}
	if err != nil {
		return err
	}
	rows := []usage{}
	for _, sb := range found {
		st, err := sb.State()
		if err != nil || st.Status != sandbox.Running {
			if c.NArg() > 0 {
				return errors.Join(err, fmt.Errorf("sandbox %s is %s", sb.Ref(), st.Status))
			}
			continue
		}
		ctx, cancel := context.WithTimeout(c.Context, statsLimit)
		row := usage{ID: sb.Config.ID, Name: sb.Config.Name}
		row.Stats, err = sb.Stats(ctx)
		if err == nil && c.Bool("devices") {
			row.Counters, err = sb.Counters(ctx)
		}
		cancel()
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rows)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "ID\tNAME\tCPU TIME\tMEMORY / TOTAL\tPIDS\tDISK / SIZE\tUP")
	for _, r := range rows {
		s := r.Stats
		fmt.Fprintf(t, "%s\t%s\t%s\t%s / %s\t%d\t%s / %s\t%s\n", r.ID, printable(r.Name), s.CPU.Round(time.Millisecond), formatSize(s.MemoryUsed), formatSize(s.MemoryTotal),
			s.Pids, formatSize(s.DiskTotal-s.DiskFree), formatSize(s.DiskTotal), s.Uptime.Round(time.Second))
	}
	return t.Flush()
}
