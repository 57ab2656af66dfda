package guest

import (
	"encoding/hex"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// resumed makes this guest another than the one whose memory it has, before any program is started in it. The clock
// comes last of what programs could compare, so that whoever sees it right sees the rest right too; then the image's own hooks.
func (a *server) resumed(r agent.Resumed) error {
	a.copied()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"entropy", func() error { return reseed(r.Entropy) }},
		{"hostname", func() error { return a.rename(r.Hostname) }},
		{"network", func() error { return a.renet(r.Network) }},
		{"cgroup", func() error { return a.limitPids(r.Pids) }},
		{"clock", func() error { return setClock(r.Now) }},
		{"hooks", func() error { return a.runHooks(afterRestore) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func (a *server) renet(n *agent.Network) error {
	if n == nil {
		if n = a.setup.Network; n == nil {
			return nil
		}
		return a.setNames(n) // the machine's own among them
	}
	a.setup.Network = n
	return a.setNetwork(n, true)
}

func (a *server) rename(hostname string) error {
	if hostname == "" {
		return nil
	}
	a.setup.Hostname = hostname
	if err := setHostname(a.setup); err != nil {
		return err
	}
	return a.newMachineID()
}

// newMachineID replaces /etc/machine-id, by which programs tell machines apart, where the image has one and it can be
// written.
func (a *server) newMachineID() error {
	const path = "/etc/machine-id"
	if st, err := os.Lstat(path); a.setup.ReadOnly || err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return nil
	}
	var id [16]byte
	if _, err := unix.Getrandom(id[:], 0); err != nil {
		return os.NewSyscallError("getrandom", err)
	}
	writeIfPlain(path, hex.EncodeToString(id[:])+"\n")
	return nil
}

func (a *server) limitPids(n int) error {
	if n == 0 {
		return nil
	}
	a.setup.Pids = n
	return writeFile(workloads+"/pids.max", strconv.Itoa(n))
}
