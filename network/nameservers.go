package network

import "net/netip"

// HostNameservers are those that a process in the host's own network namespace can ask: those on its loopback too.
func (n *Networks) HostNameservers() []netip.Addr {
	return hostResolver(n.cfg.resolvConf, false).servers
}
