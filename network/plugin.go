package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// pluginExec starts plugins for libcni, each with the attachment's lock among its files: a plugin that outlives us, and what it
// starts itself, holds the lock until it ends, so that nobody cleans up under it.
type pluginExec struct {
	version.PluginDecoder
	lock *os.File
}

// FindInPath is libcni's question where a plugin is.
func (e *pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(dirs, plugin)
}

// maxOutput bounds what is kept of what a plugin prints, in bytes.
const maxOutput = 256 << 10

// pluginPatience is how long the pipes of a plugin may be held open by what it has left behind.
const pluginPatience = 2 * time.Second

// ExecPlugin starts a plugin and returns what it prints. Of our environment it sees nothing but where programs are: there may
// be secrets in it.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.WaitDelay = pluginPatience
	for _, v := range environ {
		if strings.HasPrefix(v, "CNI_") || strings.HasPrefix(v, "PATH=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	stdout, stderr := &bounded{limit: maxOutput}, &bounded{limit: 4 << 10}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
	if e.lock != nil {
		cmd.ExtraFiles = []*os.File{e.lock}
	}
	err := cmd.Run()
	if stdout.over {
		return nil, fmt.Errorf("it printed more than %d bytes", maxOutput)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, &said
	}
	return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
}

// bounded keeps the first limit bytes of what is written to it. The buffer is not embedded: its ReadFrom would go past the limit.
type bounded struct {
	kept  bytes.Buffer
	limit int
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := min(len(p), b.limit-b.kept.Len())
	b.over = b.over || room < len(p)
	b.kept.Write(p[:room])
	return len(p), nil
}

// Bytes returns what was kept.
func (b *bounded) Bytes() []byte { return b.kept.Bytes() }

func (b *bounded) String() string { return b.kept.String() }

// cni is libcni, for one attachment whose lock is held.
func (n *Networks) cni(lock *os.File) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.cfg.Plugins, n.path(resultsDir), &pluginExec{lock: lock})
}

// runtimeConf is what CNI is told of an attachment.
func runtimeConf(r record) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{ContainerID: r.ID, NetNS: r.NetNS, IfName: guestInterface}
	if !isNetNS(r.NetNS) {
		conf.NetNS = "" // on DEL: it is gone, and what was in it too
	}
	return conf
}

// addCNI carries out the list's ADD and fills in what it says of the attachment.
func (n *Networks) addCNI(ctx context.Context, lock *os.File, r *record) error {
	list, err := checkList(r.List)
	if err != nil {
		return err
	}
	got, err := n.cni(lock).AddNetworkList(ctx, list, runtimeConf(*r))
	if err != nil {
		return fmt.Errorf("CNI ADD %s: %w", list.Name, err)
	}
	result, err := types100.GetResult(got)
	if err != nil {
		return fmt.Errorf("CNI ADD %s: %w", list.Name, err)
	}
	if err := r.judge(result); err != nil {
		return fmt.Errorf("CNI ADD %s: result: %w", list.Name, err)
	}
	return nil
}

// delCNI carries out the list's DEL, which may be done any number of times (CNI specification, DEL).
func (n *Networks) delCNI(ctx context.Context, lock *os.File, r record) error {
	if len(r.List) == 0 {
		return nil
	}
	list, err := checkList(r.List)
	if err != nil {
		return err
	}
	if err := n.cni(lock).DelNetworkList(ctx, list, runtimeConf(r)); err != nil {
		return fmt.Errorf("CNI DEL %s: %w", list.Name, err)
	}
	return nil
}

// Bounds of what a plugin may say of one attachment.
const (
	maxAddresses = 16
	maxRoutes    = 64
)

// judge takes over what a plugin's result says, as far as it is about the guest's interface.
func (r *record) judge(res *types100.Result) error {
	if len(res.IPs) > maxAddresses || len(res.Routes) > maxRoutes || len(res.Interfaces) > maxRoutes {
		return fmt.Errorf("%d addresses, %d routes, %d interfaces: too many", len(res.IPs), len(res.Routes), len(res.Interfaces))
	}
	own := slices.IndexFunc(res.Interfaces, func(i *types100.Interface) bool {
		return i != nil && i.Name == guestInterface && i.Sandbox != ""
	})
	if own >= 0 && r.MAC == nil {
		mac, err := net.ParseMAC(res.Interfaces[own].Mac)
		if err == nil && len(mac) == 6 && mac[0]&1 == 0 {
			r.MAC = MAC(mac)
		}
	}
	for _, ip := range res.IPs {
		if ip == nil || ip.Interface != nil && *ip.Interface != own {
			continue // of another interface
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, bits := ip.Address.Mask.Size()
		a = a.Unmap()
		if !ok || bits == 0 || bits != a.BitLen() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() {
			return fmt.Errorf("address %v: not one that a guest can have", ip.Address)
		}
		r.Addresses = append(r.Addresses, netip.PrefixFrom(a, ones))
		if g, ok := netip.AddrFromSlice(ip.Gateway); ok && !g.IsUnspecified() {
			r.Gateways = append(r.Gateways, g.Unmap())
		}
	}
	if err := r.judgeRoutes(res.Routes); err != nil {
		return err
	}
	for _, s := range res.DNS.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil && len(r.DNS) < maxNameservers {
			r.DNS = append(r.DNS, a.Unmap())
		}
	}
	if r.Search == nil && len(res.DNS.Search) <= maxNameservers {
		r.Search = res.DNS.Search
	}
	return nil
}

func (r *record) judgeRoutes(routes []*types.Route) error {
	for _, route := range routes {
		if route == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(route.Dst.IP)
		ones, bits := route.Dst.Mask.Size()
		a = a.Unmap()
		if !ok || bits != a.BitLen() {
			return fmt.Errorf("route to %v: no such destination", route.Dst)
		}
		to := Route{Destination: netip.PrefixFrom(a, ones).Masked()}
		if g, ok := netip.AddrFromSlice(route.GW); ok {
			to.Gateway = g.Unmap()
		} else if i := slices.IndexFunc(r.Gateways, func(g netip.Addr) bool { return g.Is4() == a.Is4() }); i >= 0 {
			to.Gateway = r.Gateways[i] // "the gateway of the address" (CNI specification, Success)
		}
		r.Routes = append(r.Routes, to)
	}
	return nil
}

// errNoAddress says that a switched guest would have no address that it could be held to.
var errNoAddress = errors.New("the plugins gave no address: only lists with ipam can be switched")
