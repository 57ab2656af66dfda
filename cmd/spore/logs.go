package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "print what a sandbox's command wrote", ArgsUsage: "SANDBOX", UseShortOptionHandling: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the command ends"},
			&cli.IntFlag{Name: "tail", Aliases: []string{"n"}, Usage: "only the last `N` pieces of output", Value: -1},
			&cli.BoolFlag{Name: "timestamps", Aliases: []string{"t"}, Usage: "begin each piece with its time"},
			&cli.BoolFlag{Name: "console", Usage: "the guest kernel's console instead"},
			rawFlag(), jsonFlag(),
		},
		Action: onSandboxHost(logsAction),
	}
}

func logsAction(c *cli.Context) error {
	sb, err := find(c)
	if err != nil {
		return err
	}
	if c.App.Writer == os.Stdout {
		c.App.Writer = shown(c, os.Stdout)
	}
	if c.App.ErrWriter == os.Stderr {
		c.App.ErrWriter = shown(c, os.Stderr)
	}
	if c.Bool("console") {
		text, err := sb.Console()
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(c.App.Writer, text)
		return err
	}
	entries, err := sb.Logs()
	if err != nil {
		return err
	}
	if n := c.Int("tail"); n >= 0 && n < len(entries) {
		entries = entries[len(entries)-n:]
	}
	print := func(e sandbox.LogEntry) error { return printEntry(c, e) }
	for _, e := range entries {
		if err := print(e); err != nil {
			return err
		}
	}
	if !c.Bool("follow") {
		return nil
	}
	var last time.Time
	if len(entries) > 0 {
		last = entries[len(entries)-1].Time
	}
	return follow(c.Context, sb, last, print)
}

// followEvery is how often a followed log is read again.
const followEvery = 100 * time.Millisecond

// follow prints entries as they come until the command has ended and all is printed.
func follow(ctx context.Context, sb *sandbox.Sandbox, last time.Time, print func(sandbox.LogEntry) error) error {
	for {
		st, err := sb.State()
		if err != nil {
			return err
		}
		entries, err := sb.Logs()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Time.After(last) {
				last = e.Time
				if err := print(e); err != nil {
					return err
				}
			}
		}
		if st.Status != sandbox.Running && st.Status != sandbox.Starting {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(followEvery):
		}
	}
}

func printEntry(c *cli.Context, e sandbox.LogEntry) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, e)
	}
	w := c.App.Writer
	if e.Stream == "stderr" {
		w = c.App.ErrWriter
	}
	if c.Bool("timestamps") {
		if _, err := fmt.Fprintf(w, "%s ", e.Time.Format(time.RFC3339Nano)); err != nil {
			return err
		}
	}
	_, err := w.Write(e.Data)
	return err
}
