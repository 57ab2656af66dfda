package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"spore/doctor"
	"spore/network"
)

// examineNetworks tries what networks are made of. None is needed by a sandbox that has no network, and nat without root needs tun only to
// be there for others.
func examineNetworks(c *cli.Context) []doctor.Finding {
	plugins := doctor.Finding{Name: "cni plugins", Why: "they make the interfaces of networks", Remedy: "build them beside spore with make build, or install the package containernetworking-plugins"}
	rules := doctor.Finding{Name: "networks", Why: "sandboxes are on networks of the host, behind filters: bridges, taps and nftables", Remedy: "install the package nftables, and load what is named; run as root"}
	networks, err := openNetworks(c)
	if err == nil {
		plugins.Detail, err = networks.Plugins()
	}
	if plugins.OK = err == nil; err != nil {
		plugins.Detail = err.Error()
	}
	if err := network.Probe(c.Context); err != nil {
		rules.Detail = err.Error()
	} else {
		rules.OK, rules.Detail = true, "bridge, veth, tap, nft with forwarding between interfaces"
	}
	if os.Geteuid() != 0 {
		rules.Remedy = "run spore as root for networks other than nat"
	}
	return []doctor.Finding{plugins, rules}
}
