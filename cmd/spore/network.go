package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"spore/network"
)

func networkCommand() *cli.Command {
	return &cli.Command{
		Name: "network", Usage: "networks that sandboxes can be on",
		Description: "nat, host-only and internal:NAME come by themselves when a sandbox wants them first, with subnets that no route of the host\n" +
			"covers; 'create' is for choosing those. cni:NAME is any CNI configuration list of the host, and is not created here.",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make the record of a network; nothing of the host changes before a sandbox is on it",
				ArgsUsage: "nat|host-only|internal:NAME|bridge:NAME",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "subnet", Usage: "`PREFIX` that sandboxes have addresses of; one for IPv4, one for IPv6", DefaultText: "picked"},
					&cli.StringSliceFlag{Name: "range", Usage: "`FIRST-LAST` addresses of a subnet that are for sandboxes: on a bridge others have some too", DefaultText: "all"},
					&cli.StringSliceFlag{Name: "gateway", Usage: "`ADDRESS` in a subnet: the host's own on nat and host-only, the router's on a bridge", DefaultText: "the first"},
					&cli.IntFlag{Name: "mtu", Usage: "`BYTES` that a frame may carry, 1280 to 65535", DefaultText: "the kernel's"},
					&cli.BoolFlag{Name: "ipv6", Usage: "pick an IPv6 subnet too (--ipv6=false: do not)", Value: true},
					&cli.StringSliceFlag{Name: "dns", Usage: "name server `ADDRESS` for the sandboxes", DefaultText: "on nat the host's"},
					jsonFlag(),
				},
				Action: onSandboxHost(networkCreate),
			},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list networks, and the CNI lists that can be used", Flags: []cli.Flag{jsonFlag()}, Action: onSandboxHost(networkList)},
			{Name: "inspect", Usage: "print all that is known of networks and who is on them, as JSON", ArgsUsage: "NETWORK...", Flags: []cli.Flag{jsonFlag()}, Action: onSandboxHost(networkInspect)},
			{Name: "rm", Usage: "remove networks that no sandbox is on", ArgsUsage: "NETWORK...", Action: onSandboxHost(networkRemove)},
			networkExplainCommand(),
			networkLogCommand(),
		},
	}
}

// openNetworks opens the directory of networks: it is of this boot of this machine, like the sandboxes. CNI_PATH and NETCONFPATH are what
// CNI's own tools call where its plugins and its lists are.
func openNetworks(c *cli.Context) (*network.Networks, error) {
	plugins := append([]string{beside("cni")}, filepath.SplitList(os.Getenv("CNI_PATH"))...)
	lists := filepath.SplitList(os.Getenv("NETCONFPATH"))
	return network.Open(network.Config{
		Dir:     filepath.Join(stateDir(c), "networks"),
		Plugins: append(plugins, "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"),
		Lists:   append(lists, "/etc/cni/net.d"),
		Log:     logger(c),
	})
}

// networkArgs reads the networks that the arguments name.
func networkArgs(c *cli.Context) (choices []network.Choice, err error) {
	if c.NArg() == 0 {
		return nil, usagef(c, "name a network")
	}
	for _, arg := range c.Args().Slice() {
		choice, err := network.ParseChoice(arg)
		if err != nil {
			return nil, usagef(c, "%v", err)
		}
		choices = append(choices, choice)
	}
	return choices, nil
}

func networkCreate(c *cli.Context) error {
	choices, err := networkArgs(c)
	if err != nil {
		return err
	}
	if len(choices) != 1 {
		return usagef(c, "name one network, after its flags")
	}
	o := network.Options{MTU: c.Int("mtu"), NoIPv6: !c.Bool("ipv6")}
	for _, s := range c.StringSlice("subnet") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return usagef(c, "--subnet %s: write it as 10.1.0.0/22 or fd00:1::/64", s)
		}
		o.Subnets = append(o.Subnets, p)
	}
	for _, s := range c.StringSlice("range") {
		first, last, _ := strings.Cut(s, "-")
		a, errA := netip.ParseAddr(first)
		b, errB := netip.ParseAddr(last)
		if errA != nil || errB != nil {
			return usagef(c, "--range %s: write it as 10.1.0.10-10.1.0.99", s)
		}
		o.Ranges = append(o.Ranges, network.AddrRange{First: a, Last: b})
	}
	for flag, to := range map[string]*[]netip.Addr{"gateway": &o.Gateways, "dns": &o.DNS} {
		for _, s := range c.StringSlice(flag) {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return usagef(c, "--%s %s: that is no address", flag, s)
			}
			*to = append(*to, a)
		}
	}
	networks, err := openNetworks(c)
	if err != nil {
		return err
	}
	n, err := networks.Create(c.Context, choices[0], o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, n)
	}
	_, err = fmt.Fprintln(c.App.Writer, n.Choice)
	return err
}

// listedNetwork is one network in the output of list and inspect.
type listedNetwork struct {
	network.Network
	Attachments []network.Attachment `json:"attachments"`
}

func networkList(c *cli.Context) error {
	networks, err := openNetworks(c)
	if err != nil {
		return err
	}
	all, err := networks.List()
	if err != nil {
		return err
	}
	for _, list := range networks.Lists() {
		all = append(all, network.Network{Choice: list})
	}
	rows := []listedNetwork{}
	for _, n := range all {
		_, on, err := networks.Inspect(n.Choice)
		if errors.Is(err, network.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		rows = append(rows, listedNetwork{n, on})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rows)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NETWORK\tSUBNETS\tBRIDGE\tSANDBOXES\tCREATED")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", printable(r.String()), joined(r.Subnets), printable(r.Bridge), len(r.Attachments), since(r.Created))
	}
	return t.Flush()
}

// joined writes a list into one column of a table.
func joined[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}

func networkInspect(c *cli.Context) error {
	choices, err := networkArgs(c)
	if err != nil {
		return err
	}
	networks, err := openNetworks(c)
	if err != nil {
		return err
	}
	rows := []listedNetwork{}
	for _, choice := range choices {
		n, on, err := networks.Inspect(choice)
		if err != nil {
			return err
		}
		rows = append(rows, listedNetwork{n, on})
	}
	return printJSON(c.App.Writer, rows)
}

func networkRemove(c *cli.Context) error {
	choices, err := networkArgs(c)
	if err != nil {
		return err
	}
	if _, err := openSandboxes(c); err != nil { // a sandbox that was killed is on none
		return err
	}
	networks, err := openNetworks(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, choice := range choices {
		if err := networks.Remove(c.Context, choice); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, choice)
	}
	return errors.Join(errs...)
}
