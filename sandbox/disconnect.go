package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/network"
	"spore/network/policy"
)

// Connected is how a running sandbox is connected, as its record has it.
type Connected struct {
	MAC       string              `json:"mac"`
	Addresses []string            `json:"addresses"`
	MTU       int                 `json:"mtu,omitempty"`
	Ports     []network.Published `json:"ports,omitempty"`
	Mediated  bool                `json:"mediated,omitempty"`
}

func (c *connection) record() *Connected {
	return &Connected{MAC: c.guest.MAC, Addresses: c.guest.Addresses, MTU: c.mtu, Ports: c.ports, Mediated: c.mediation != nil}
}

// connection is how the sandbox is connected at the moment; nil if it is not.
func (v *supervisor) connection() *connection {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.net
}

func (v *supervisor) setConnection(c *connection) {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	v.net = c
}

// disconnect takes a network away again, however much of it there is.
func (v *supervisor) disconnect(c *connection) error {
	var errs []error
	if c.mediation != nil {
		errs = append(errs, c.mediation.close())
	}
	if c.frames != nil {
		errs = append(errs, c.frames.Close())
	}
	if c.place != nil {
		ctx, cancel := context.WithTimeout(context.Background(), disconnectLimit)
		defer cancel()
		errs = append(errs, v.host.Networks.Detach(ctx, v.sb.Config.ID))
	}
	return errors.Join(errs...)
}

// What spore-net may use, beside the limits that it keeps itself.
const (
	netMemory  = 256 << 20
	netThreads = 256
	netCPUs    = 2
)

// netSuffix ends the name of the cgroup that a sandbox's spore-net is in.
const netSuffix = "-net"

// netGroup makes the cgroup of a spore-net, or returns nil where there is none to be had and that is allowed.
func netGroup(name string, without []jailer.Layer) (*cgroup.Group, error) {
	return newGroup(name+netSuffix, cgroup.Limits{Memory: netMemory, Pids: netThreads, CPUs: netCPUs}, without)
}

// rootsFiles are where distributions keep the certificates that they trust.
var rootsFiles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}

// maxRoots bounds the file of them in bytes.
const maxRoots = 4 << 20

// systemRoots reads whom the host trusts to certify the hosts of secrets; $SSL_CERT_FILE says otherwise, as everywhere.
func systemRoots() ([]byte, error) {
	files := rootsFiles
	if own := os.Getenv("SSL_CERT_FILE"); own != "" {
		files = []string{own}
	}
	for _, path := range files {
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		if st.Size() > maxRoots {
			return nil, fmt.Errorf("--secret: %s has more than %d bytes", path, maxRoots)
		}
		return os.ReadFile(path)
	}
	return nil, fmt.Errorf("--secret: no certificates to trust in %v: install ca-certificates, or set SSL_CERT_FILE", files)
}

// netCounters are the figures of the sandbox's network, as spore stats prints them; nil if it has none.
func (v *supervisor) netCounters(ctx context.Context) (map[string]uint64, error) {
	c := v.connection()
	if c == nil {
		return nil, nil
	}
	if c.mediation != nil {
		p, err := c.mediation.ready(ctx)
		if err != nil {
			return nil, err
		}
		s, err := p.Stats(ctx)
		if err != nil {
			return nil, err
		}
		return flatten(s)
	}
	s, err := v.host.Networks.Counters(v.sb.Config.ID)
	if err != nil {
		return nil, err
	}
	return flatten(s)
}

// flatten is the numbers in v under the names that they have in JSON, a level's names joined by "_".
func flatten(v any) (map[string]uint64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	flattenInto(out, "", tree)
	return out, nil
}

func flattenInto(out map[string]uint64, prefix string, tree map[string]any) {
	for name, v := range tree {
		switch v := v.(type) {
		case float64:
			out[prefix+name] = uint64(v)
		case map[string]any:
			flattenInto(out, prefix+name+"_", v)
		}
	}
}

// explainNetwork says what would become of a connection of the guest's.
func (v *supervisor) explainNetwork(address string) (*policy.Explanation, error) {
	c := v.connection()
	if c == nil || c.mediation == nil {
		return nil, errors.New("no rules stand between it and its network")
	}
	ctx, cancel := context.WithTimeout(v.ctx, statsLimit)
	defer cancel()
	p, err := c.mediation.ready(ctx)
	if err != nil {
		return nil, err
	}
	e, err := p.Explain(ctx, address)
	return &e, err
}

// hangUp disconnects after the machine, and notes in the outcome what was denied and what the jail of spore-net lacked.
func (v *supervisor) hangUp(o *Outcome) {
	c := v.connection()
	if c == nil {
		return
	}
	v.setConnection(nil)
	if c.mediation != nil {
		c.mediation.noteEnd(o)
	}
	if err := v.disconnect(c); err != nil { // the command has had its end; what is left, the next command sweeps
		v.host.log().Warn("disconnect", "err", err)
	}
}

// noteEnd notes in the outcome what was denied, what its jail lacked, and that the network ended before the sandbox, if it did.
func (m *mediation) noteEnd(o *Outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), statsLimit)
	defer cancel()
	p, err := m.ready(ctx)
	if err != nil {
		return // there was nothing that could deny
	}
	for _, l := range p.Missing {
		if !slices.Contains(o.JailMissing, l) {
			o.JailMissing = append(o.JailMissing, l)
		}
	}
	select {
	case <-p.Done():
		lost := "the sandbox had no network any more"
		if err := p.Close(); err != nil {
			lost += ": " + err.Error()
		}
		if o.Detail != "" {
			lost = o.Detail + "; " + lost
		}
		o.Detail = lost
	default:
		if s, err := p.Stats(ctx); err == nil {
			o.Denied = s.Denied
		}
	}
}

// NetworkLog opens the audit lines of the sandbox's network, policy.Event each. fs.ErrNotExist says that there are none.
func (sb *Sandbox) NetworkLog() (*os.File, error) { return os.Open(sb.path(auditFile)) }
