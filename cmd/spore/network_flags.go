package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"spore/network"
	"spore/network/policy"
	"spore/sandbox"
)

// networkFlags are those of run and create that say how the sandbox is connected.
func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "network", Usage: "connect the sandbox: `none`, nat, internal:NAME, host-only, bridge:NAME or cni:NAME", Value: string(network.KindNone)},
		&cli.StringSliceFlag{Name: "allow", Usage: "let the sandbox reach `[PROTO://]TARGET[:PORT]`: a name, *.suffix, address, network or * (all public); all else is denied then"},
		&cli.StringSliceFlag{Name: "deny", Usage: "deny `[PROTO://]TARGET[:PORT]`, whatever is allowed"},
		&cli.StringFlag{Name: "rules", Usage: "read such rules from `FILE`: 'allow …' or 'deny …' on each line"},
		&cli.StringSliceFlag{Name: "publish", Aliases: []string{"p"}, Usage: "lead a port of the host to one of the guest: `[ADDR:]HOST:GUEST[/udp]`, on 127.0.0.1 if no address is given"},
		&cli.StringSliceFlag{Name: "dns", Usage: "ask the name server at `ADDR`"},
		&cli.StringSliceFlag{Name: "secret", Usage: "`NAME[=env:VAR|=file:PATH|=-]@HOST`: the guest has a placeholder in $NAME, and HOST gets the value"},
		&cli.IntFlag{Name: "mtu", Usage: "frames carry at most `BYTES`", DefaultText: "the network's own"},
	}
}

// maxRules bounds a file of rules in bytes.
const maxRules = 1 << 20

// networkOf is the network that the flags ask for, nil for none.
func networkOf(c *cli.Context) (*sandbox.Network, error) {
	choice, err := network.ParseChoice(c.String("network"))
	if err != nil {
		return nil, fmt.Errorf("--network: %w", err)
	}
	n := &sandbox.Network{Choice: choice, MTU: c.Int("mtu"), Rules: policy.Source{Allow: c.StringSlice("allow"), Deny: c.StringSlice("deny")}}
	if path := c.String("rules"); path != "" {
		if err := addRules(&n.Rules, path); err != nil {
			return nil, err
		}
	}
	for _, s := range c.StringSlice("publish") {
		p, err := network.ParsePublished(s)
		if err != nil {
			return nil, fmt.Errorf("--publish %w", err)
		}
		n.Publish = append(n.Publish, p)
	}
	for _, s := range c.StringSlice("dns") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--dns %q: use the address of a name server", s)
		}
		n.DNS = append(n.DNS, a)
	}
	for _, s := range c.StringSlice("secret") {
		secret, err := sandbox.ParseSecret(s)
		if err != nil {
			return nil, fmt.Errorf("--secret: %w", err)
		}
		n.Secrets = append(n.Secrets, secret)
	}
	if !choice.None() {
		return n, nil
	}
	for _, name := range []string{"allow", "deny", "rules", "publish", "dns", "secret", "mtu"} {
		if c.IsSet(name) {
			return nil, usagef(c, "--%s needs a network: add --network nat", name)
		}
	}
	return nil, nil
}

func addRules(to *policy.Source, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("--rules: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRules))
	if err != nil {
		return fmt.Errorf("--rules: %w", err)
	}
	more, err := policy.ReadSource(path, text)
	if err != nil {
		return fmt.Errorf("--rules: %w", err)
	}
	to.Allow, to.Deny = append(to.Allow, more.Allow...), append(to.Deny, more.Deny...)
	return nil
}

// secretsFromStdin reads those secrets of a sandbox that come from standard input, a line each in their order.
func secretsFromStdin(n *sandbox.Network, in io.Reader) (map[string]string, error) {
	if n == nil {
		return nil, nil
	}
	given := map[string]string{}
	for _, s := range n.Secrets {
		if !s.FromStdin() {
			continue
		}
		line, err := readLine(in)
		if err != nil {
			return nil, fmt.Errorf("--secret %s: read standard input: %w", s.Name, err)
		}
		given[s.Name] = line
	}
	return given, nil
}

// maxLine bounds a secret's line in bytes; more than a value may have.
const maxLine = 64 << 10

// readLine reads one line and not a byte more: what follows is the command's.
func readLine(in io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxLine; {
		n, err := in.Read(b)
		if n == 1 && b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[:n]...)
		if errors.Is(err, io.EOF) && len(line) > 0 {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("a line of more than %d bytes", maxLine)
}
