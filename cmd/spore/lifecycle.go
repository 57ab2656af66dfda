package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/sandbox"
)

func stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "ask commands to end, then end their sandboxes", ArgsUsage: "SANDBOX...",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "time", Aliases: []string{"t"}, Usage: "`TIME` between the signal and the end", Value: 10 * time.Second},
			&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` to ask with", Value: "TERM"},
		},
		Action: onSandboxHost(func(c *cli.Context) error {
			sig, err := parseSignal(c.String("signal"))
			if err != nil {
				return err
			}
			return each(c, func(ctx context.Context, sb *sandbox.Sandbox) error {
				err := sb.Stop(ctx, sig, c.Duration("time"))
				if st, stateErr := sb.State(); stateErr == nil && st.Status == sandbox.Stopped {
					return nil // it is as asked, whoever did it
				}
				return err
			})
		}),
	}
}

func killCommand() *cli.Command {
	return &cli.Command{
		Name: "kill", Usage: "send a signal to commands; KILL ends their sandboxes", ArgsUsage: "SANDBOX...",
		Flags: []cli.Flag{&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` to send", Value: "KILL"}},
		Action: onSandboxHost(func(c *cli.Context) error {
			sig, err := parseSignal(c.String("signal"))
			if err != nil {
				return err
			}
			return each(c, func(ctx context.Context, sb *sandbox.Sandbox) error {
				if sig == unix.SIGKILL {
					return sb.Kill(ctx)
				}
				return sb.Signal(ctx, sig)
			})
		}),
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

func rmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", Usage: "remove sandboxes and all they wrote", ArgsUsage: "SANDBOX...",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "end running ones first; missing ones are no error"}},
		Action: onSandboxHost(func(c *cli.Context) error {
			return each(c, func(ctx context.Context, sb *sandbox.Sandbox) error {
				if c.Bool("force") {
					if err := sb.Kill(ctx); err != nil && !ended(err) {
						return err
					}
				}
				return sb.Remove()
			})
		}),
	}
}

// ended reports whether err only says that the sandbox does not run.
func ended(err error) bool {
	var se *sandbox.StateError
	return errors.As(err, &se) || errors.Is(err, sandbox.ErrLost)
}

func waitCommand() *cli.Command {
	return &cli.Command{
		Name: "wait", Usage: "wait for sandboxes to end and print their exit codes", ArgsUsage: "SANDBOX...",
		Flags: []cli.Flag{jsonFlag()},
		Action: onSandboxHost(func(c *cli.Context) error {
			found, err := findAll(c)
			if err != nil {
				return err
			}
			for _, sb := range found {
				o, err := sb.Wait(c.Context)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					err = printJSON(c.App.Writer, o)
				} else {
					_, err = fmt.Fprintln(c.App.Writer, o.ExitCode)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// each does something to every sandbox named, prints the name of each that it was done to, and goes on past
// errors.
func each(c *cli.Context, do func(context.Context, *sandbox.Sandbox) error) error {
	if c.NArg() == 0 {
		return usagef(c, "name a sandbox")
	}
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range c.Args().Slice() {
		sb, err := store.Find(ref)
		if errors.Is(err, sandbox.ErrNotFound) && c.Bool("force") {
			continue
		}
		if err == nil {
			err = do(c.Context, sb)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, ref)
	}
	return errors.Join(errs...)
}

// parseSignal reads TERM, SIGTERM, sigterm or 15.
func parseSignal(s string) (unix.Signal, error) {
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err == nil && n > 0 && n < 65 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q: use a name such as TERM or a number from 1 to 64", s)
}
