package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// guestInterface is what CNI calls the interface in an attachment's namespace, and tapInterface is the tap beside it.
const (
	guestInterface = "eth0"
	tapInterface   = "tap0"
)

// cniVersion is the version of the specification that our lists are of (CNI 1.0.0; 1.1 adds nothing that they need).
const cniVersion = "1.0.0"

// The parts of a configuration list that ours have: plugins bridge and host-local.
type (
	confList struct {
		Version string       `json:"cniVersion"`
		Name    string       `json:"name"`
		Plugins []bridgeConf `json:"plugins"`
	}
	bridgeConf struct {
		Type           string    `json:"type"`
		Bridge         string    `json:"bridge"`
		Gateway        bool      `json:"isGateway,omitempty"`
		DefaultGateway bool      `json:"isDefaultGateway,omitempty"`
		MTU            int       `json:"mtu,omitempty"`
		Isolation      bool      `json:"portIsolation,omitempty"`
		IPAM           hostLocal `json:"ipam"`
	}
	hostLocal struct {
		Type   string      `json:"type"`
		Dir    string      `json:"dataDir"`
		Ranges [][]ipRange `json:"ranges"`
		Routes []routeConf `json:"routes,omitempty"`
	}
	ipRange struct {
		Subnet  netip.Prefix `json:"subnet"`
		First   netip.Addr   `json:"rangeStart,omitzero"`
		Last    netip.Addr   `json:"rangeEnd,omitzero"`
		Gateway netip.Addr   `json:"gateway,omitzero"`
	}
	routeConf struct {
		Destination string `json:"dst"`
	}
)

// generate makes the configuration list of a network of ours. Masquerading is not the plugin's: one rule of the network's own
// (hostRules) does it for all who are on it.
func generate(net Network, addresses string) ([]byte, error) {
	plugin := bridgeConf{Type: "bridge", Bridge: net.Bridge, MTU: net.MTU, IPAM: hostLocal{Type: "host-local", Dir: addresses}}
	switch net.Kind {
	case KindNAT:
		plugin.Gateway, plugin.DefaultGateway, plugin.Isolation = true, true, true
	case KindBridge:
		for _, p := range net.Subnets {
			plugin.IPAM.Routes = append(plugin.IPAM.Routes, routeConf{netip.PrefixFrom(unspecified(p), 0).String()})
		}
	}
	for i, p := range net.Subnets {
		r := ipRange{Subnet: p}
		if i < len(net.Gateways) {
			r.Gateway = net.Gateways[i] // it is nobody else's, on networks without a way out too
		}
		for _, part := range net.Ranges {
			if p.Contains(part.First) {
				r.First, r.Last = part.First, part.Last
			}
		}
		plugin.IPAM.Ranges = append(plugin.IPAM.Ranges, []ipRange{r})
	}
	return json.MarshalIndent(confList{cniVersion, net.key(), []bridgeConf{plugin}}, "", "  ")
}

func unspecified(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// maxList bounds a configuration file, in bytes.
const maxList = 256 << 10

// findList returns the configuration list of that name in the directories, the first by directory and file name.
func findList(dirs []string, name string) ([]byte, error) {
	var faults []error
	for _, path := range listFiles(dirs) {
		body, err := readList(path)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if list, err := checkList(body); err == nil && list.Name == name {
			return body, nil
		} else if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, err))
		}
	}
	err := fmt.Errorf("%w: cni:%s: no configuration list of that name in %s", ErrNotFound, name, strings.Join(dirs, ", "))
	return nil, errors.Join(append([]error{err}, faults...)...)
}

// listFiles returns the paths of all CNI configuration files, in order.
func listFiles(dirs []string) (paths []string) {
	for _, dir := range dirs {
		files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
		if err != nil {
			continue // what may not be read offers nothing
		}
		slices.Sort(files)
		paths = append(paths, files...)
	}
	return paths
}

// listNames returns the names of all configuration lists that can be used.
func listNames(dirs []string) (names []string) {
	for _, path := range listFiles(dirs) {
		body, err := readList(path)
		if err != nil {
			continue
		}
		if list, err := checkList(body); err == nil && validName(list.Name) && !slices.Contains(names, list.Name) {
			names = append(names, list.Name)
		}
	}
	return names
}

// readList reads a configuration file and makes a list of it if it is one plugin's.
func readList(path string) ([]byte, error) {
	body, err := readBounded(path, maxList)
	if err != nil || filepath.Ext(path) == ".conflist" {
		return body, err
	}
	one, err := libcni.NetworkPluginConfFromBytes(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list, err := libcni.ConfListFromConf(one)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list.Bytes, nil
}

// checkList judges a configuration list before anything of it is used: CNI-01, CVE-2021-20206. A plugin is looked for by its
// type in the directories of plugins, so a type must not lead out of them.
func checkList(body []byte) (*libcni.NetworkConfigList, error) {
	if len(body) > maxList || slices.Contains(body, 0) {
		return nil, errors.New("CNI list: larger than 256 KiB, or with a zero byte")
	}
	list, err := libcni.NetworkConfFromBytes(body)
	if err != nil {
		return nil, fmt.Errorf("CNI list: %w", err)
	}
	if !validName(list.Name) {
		return nil, fmt.Errorf("CNI list: %q is no name of a network", list.Name)
	}
	if len(list.Plugins) == 0 || len(list.Plugins) > 16 {
		return nil, fmt.Errorf("CNI list %s: %d plugins: there must be 1 to 16", list.Name, len(list.Plugins))
	}
	for _, p := range list.Plugins {
		if err := checkTypes(p.Bytes); err != nil {
			return nil, fmt.Errorf("CNI list %s: %w", list.Name, err)
		}
	}
	return list, nil
}

// checkTypes wants every "type" in a plugin's configuration, however deep, to be a plain name: plugins start others that their
// configuration names (ipam, delegate).
func checkTypes(body []byte) error {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	var walk func(v any) error
	walk = func(v any) error {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if s, ok := value.(string); ok && strings.EqualFold(key, "type") && s != "" && !validName(s) {
					return fmt.Errorf("%q is no name of a plugin", s)
				}
				if err := walk(value); err != nil {
					return err
				}
			}
		case []any:
			for _, value := range v {
				if err := walk(value); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk(v)
}

// findPlugin returns the path of a plugin, or an error that says what to do.
func findPlugin(dirs []string, name string) (string, error) {
	if !validName(name) {
		return "", fmt.Errorf("CNI plugin %q: that is no name of a plugin", name)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s: not in %s: make build puts Spore's own beside it, a distribution's package is containernetworking-plugins", name, strings.Join(dirs, ", "))
}
