package sandbox_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/network"
	"spore/sandbox"
)

func TestParseSecret(t *testing.T) {
	for in, want := range map[string]sandbox.Secret{
		"TOKEN@api.example.org":               {Name: "TOKEN", Hosts: []string{"api.example.org"}, Source: "env:TOKEN"},
		"TOKEN@a.example,*.b.example":         {Name: "TOKEN", Hosts: []string{"a.example", "*.b.example"}, Source: "env:TOKEN"},
		"TOKEN=env:MY_TOKEN@api.example.org":  {Name: "TOKEN", Hosts: []string{"api.example.org"}, Source: "env:MY_TOKEN"},
		"TOKEN=file:/run/token@a.example.org": {Name: "TOKEN", Hosts: []string{"a.example.org"}, Source: "file:/run/token"},
		"TOKEN=-@api.example.org":             {Name: "TOKEN", Hosts: []string{"api.example.org"}, Source: "stdin"},
	} {
		got, err := sandbox.ParseSecret(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got.Name != want.Name || strings.Join(got.Hosts, " ") != strings.Join(want.Hosts, " ") || got.Source != want.Source {
			t.Errorf("%s is %+v, want %+v", in, got, want)
		}
		if again, err := sandbox.ParseSecret(in); err != nil || again.Placeholder == got.Placeholder || len(got.Placeholder) < 16 {
			t.Errorf("%s has the placeholders %q and %q, %v", in, got.Placeholder, again.Placeholder, err)
		}
	}
	for _, in := range []string{"", "TOKEN", "TOKEN@", "@host", "1TOKEN@host", "TOKEN=s3cret@host", "TOKEN=file:@host", "TOKEN=env:@host"} {
		if got, err := sandbox.ParseSecret(in); err == nil {
			t.Errorf("%q is %+v, want an error", in, got)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error repeats what may be the value: %v", in, err)
		}
	}
}

// TestNetworkIsEnforcedOrRefused has what cannot be enforced on a network refused when the sandbox is made.
func TestNetworkIsEnforcedOrRefused(t *testing.T) {
	with := func(choice string, change func(*sandbox.Network)) *sandbox.Network {
		c, err := network.ParseChoice(choice)
		if err != nil {
			t.Fatal(err)
		}
		n := &sandbox.Network{Choice: c}
		change(n)
		return n
	}
	rule := func(n *sandbox.Network) { n.Rules.Allow = []string{"example.org"} }
	port := func(n *sandbox.Network) { n.Publish = []network.Published{{Protocol: "tcp", Guest: 80}} }
	secret := func(n *sandbox.Network) {
		n.Secrets = []sandbox.Secret{{Name: "T", Hosts: []string{"example.org"}, Source: "env:T"}}
	}
	for name, c := range map[string]struct {
		n    *sandbox.Network
		want string // of the error; "" for none
	}{
		"nat alone":          {with("nat", func(*sandbox.Network) {}), ""},
		"nat with a rule":    {with("nat", rule), ""},
		"nat with a port":    {with("nat", port), ""},
		"nat with a secret":  {with("nat", secret), ""},
		"cni with a rule":    {with("cni:lan", rule), ""},
		"internal, rule":     {with("internal:a", rule), "no rule can be enforced"},
		"internal, port":     {with("internal:a", port), "--publish"},
		"bridge, secret":     {with("bridge:br0", secret), "--secret"},
		"host-only, rule":    {with("host-only", rule), "no rule can be enforced"},
		"MTU too small":      {with("nat", func(n *sandbox.Network) { n.MTU = 100 }), "--mtu 100"},
		"a rule that is not": {with("nat", func(n *sandbox.Network) { n.Rules.Allow = []string{"https://exa mple"} }), "exa mple"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sandbox.Config{
				Args: []string{"true"}, Dir: "/", CPUs: 1, Memory: sandbox.DefaultMemory, Disk: sandbox.DefaultDisk, Pids: 1,
				Root: sandbox.RootBlock, Network: c.n,
			}
			err := cfg.Validate()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestSecretIsNotInTheRecord looks for the value in everything that is written of a sandbox.
func TestSecretIsNotInTheRecord(t *testing.T) {
	const value = "the-value-itself"
	t.Setenv("TOKEN", value)
	store, err := sandbox.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := sandbox.ParseSecret("TOKEN@example.org")
	if err != nil {
		t.Fatal(err)
	}
	n := &sandbox.Network{Choice: network.Choice{Kind: network.KindNAT}, Secrets: []sandbox.Secret{s}}
	cfg := sandbox.Config{
		Args: []string{"true"}, Dir: "/", CPUs: 1, Memory: sandbox.DefaultMemory, Disk: sandbox.DefaultDisk, Pids: 1,
		Root: sandbox.RootBlock, Network: n, Env: n.Placeholders(),
	}
	var dir string
	if _, err := store.Create(cfg, sandbox.Origin{Writable: func(path string) error {
		dir = filepath.Dir(filepath.Dir(path))
		return os.WriteFile(path, nil, 0o600)
	}}); err != nil {
		t.Fatal(err)
	}
	found := false
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), value) {
			t.Errorf("%s has the value", path)
		}
		found = found || strings.Contains(string(b), s.Placeholder)
		return err
	})
	if err != nil || !found {
		t.Errorf("the record was not looked at: %v", err)
	}
}
