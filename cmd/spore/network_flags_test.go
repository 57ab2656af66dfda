package main

import (
	"io"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
)

func TestSecretsFromStdinLeaveTheRest(t *testing.T) {
	n := &sandbox.Network{Secrets: []sandbox.Secret{{Name: "A", Source: "stdin"}, {Name: "B", Source: "env:B"}, {Name: "C", Source: "stdin"}}}
	in := strings.NewReader("first\r\nsecond\nfor the command\n")
	given, err := secretsFromStdin(n, in)
	if err != nil || given["A"] != "first" || given["C"] != "second" || len(given) != 2 {
		t.Fatalf("%q, %v", given, err)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "for the command\n" {
		t.Errorf("the command has %q left", rest)
	}
	if _, err := secretsFromStdin(n, strings.NewReader("only one\n")); err == nil {
		t.Error("a secret that is not there is none missed")
	}
	if given, err := secretsFromStdin(nil, strings.NewReader("")); err != nil || len(given) != 0 {
		t.Errorf("no network: %v, %v", given, err)
	}
}

// TestCommasAreNoSeparators: a rule with several ports is one rule, and a variable's value may have commas.
func TestCommasAreNoSeparators(t *testing.T) {
	t.Setenv("SPORE_JAIL_WITHOUT", "landlock,cgroup")
	app := newApp()
	ran := false
	for _, command := range app.Commands {
		if command.Name != "run" {
			continue
		}
		command.Action = func(c *cli.Context) error {
			ran = true
			n, err := networkOf(c)
			if err != nil {
				return err
			}
			if strings.Join(n.Rules.Allow, " ") != "192.0.2.1:22,80 example.org" || strings.Join(c.StringSlice("env"), " ") != "A=1,2" {
				t.Errorf("rules %q, variables %q", n.Rules.Allow, c.StringSlice("env"))
			}
			layers, err := allowedMissing(c)
			if len(layers) != 2 {
				t.Errorf("layers %q", layers)
			}
			return err
		}
	}
	err := app.Run([]string{"spore", "run", "--network", "nat", "--allow", "192.0.2.1:22,80", "--allow", "example.org", "-e", "A=1,2", "image"})
	if err != nil || !ran {
		t.Errorf("ran %t: %v", ran, err)
	}
}
