package main

import (
	"io"
	"strings"
	"testing"

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
