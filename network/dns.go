package network

import (
	"bufio"
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// resolvConf is where the host's nameservers are. The second is what systemd-resolved asks itself, where the first says to ask
// a loopback address (man 8 systemd-resolved).
var resolvConf = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// maxNameservers bounds those that are taken from a file; resolvers ask three (resolv.conf(5)).
const maxNameservers = 8

// resolver is what a resolv.conf says.
type resolver struct {
	servers []netip.Addr
	search  []string
}

// parseResolvConf reads what resolv.conf(5) describes, as far as it is ours to follow. A server with a zone is left out: it
// means nothing in another namespace.
func parseResolvConf(text []byte) (r resolver) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && a.Zone() == "" && len(r.servers) < maxNameservers && !slices.Contains(r.servers, a.Unmap()) {
				r.servers = append(r.servers, a.Unmap())
			}
		case "search", "domain":
			r.search = f[1:min(len(f), 7)]
		}
	}
	return r
}

// hostResolver returns the host's nameservers and search domains: those that can be asked from another namespace, if outside.
func hostResolver(files []string, outside bool) resolver {
	var r resolver
	for _, path := range files {
		text, err := readBounded(path, 64<<10)
		if err != nil {
			continue
		}
		next := parseResolvConf(text)
		if outside {
			next.servers = slices.DeleteFunc(next.servers, netip.Addr.IsLoopback)
		}
		if r.search == nil {
			r.search = next.search
		}
		if len(next.servers) > 0 {
			r.servers = next.servers
			break
		}
	}
	return r
}
