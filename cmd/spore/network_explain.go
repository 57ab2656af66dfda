package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"spore/network/policy"
	"spore/sandbox"
)

func networkExplainCommand() *cli.Command {
	return &cli.Command{
		Name: "explain", Usage: "say what would become of a connection, and by which rule", ArgsUsage: "SANDBOX ADDRESS",
		Description: "ADDRESS is a name, an address or either with a port: example.org:443, udp://192.0.2.1:53, [2001:db8::1]:80. A running\n" +
			"sandbox is asked, with the names that it has resolved; for one that does not run, its rules say.",
		Flags:  []cli.Flag{jsonFlag()},
		Action: onSandboxHost(networkExplain),
	}
}

func networkExplain(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name a sandbox and an address")
	}
	sb, err := find(c)
	if err != nil {
		return err
	}
	n := sb.Config.Network
	if n == nil {
		return fmt.Errorf("sandbox %s has no network: nothing can be reached", sb.Ref())
	}
	if !n.Mediated() {
		return fmt.Errorf("sandbox %s is on %s, where no rules stand: it reaches whatever is there", sb.Ref(), n.Choice)
	}
	e, err := explained(c, sb, c.Args().Get(1))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, e)
	}
	_, err = fmt.Fprintln(c.App.Writer, e)
	return err
}

func explained(c *cli.Context, sb *sandbox.Sandbox, address string) (policy.Explanation, error) {
	st, err := sb.State()
	if err != nil {
		return policy.Explanation{}, err
	}
	if st.Status == sandbox.Running {
		return sb.Explain(c.Context, address)
	}
	p, err := policy.Parse(sb.Config.Network.Rules)
	if err != nil {
		return policy.Explanation{}, err
	}
	return p.ExplainAddress(nil, address)
}

func networkLogCommand() *cli.Command {
	return &cli.Command{
		Name: "log", Usage: "print what a sandbox's network let through and denied, a line of JSON each", ArgsUsage: "SANDBOX",
		Action: onSandboxHost(func(c *cli.Context) error {
			sb, err := find(c)
			if err != nil {
				return err
			}
			f, err := sb.NetworkLog()
			if errors.Is(err, os.ErrNotExist) {
				return nil // nothing has happened yet
			}
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(c.App.Writer, f)
			return err
		}),
	}
}
