package main

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"spore/snapshot"
)

// TestNoKeyIsIgnored: a flag that names a key, or says that there is none, is never given for nothing.
func TestNoKeyIsIgnored(t *testing.T) {
	locked, open := &snapshot.Manifest{Encryption: &snapshot.Encryption{}}, &snapshot.Manifest{}
	for _, test := range []struct {
		args  string
		check func(*cli.Context) error
		want  string // in the error; "" for none
	}{
		{"--encrypt=passphrase", func(c *cli.Context) error { return checkEncrypt(c, false) }, ""},
		{"--encrypt=passphrase", func(c *cli.Context) error { return checkEncrypt(c, true) }, ""},
		{"--plain", func(c *cli.Context) error { return checkEncrypt(c, true) }, ""},
		{"", func(c *cli.Context) error { return checkEncrypt(c, false) }, ""},
		{"", func(c *cli.Context) error { return checkEncrypt(c, true) }, "--encrypt, or --plain"},
		{"--encrypt=passphrase --plain", func(c *cli.Context) error { return checkEncrypt(c, false) }, "leave one out"},
		{"--encrypt=passphrase --plain", func(c *cli.Context) error { return checkEncrypt(c, true) }, "leave one out"},
		{"--unlock=passphrase", func(c *cli.Context) error { return checkUnlock(c, locked) }, ""},
		{"", func(c *cli.Context) error { return checkUnlock(c, locked) }, ""},
		{"", func(c *cli.Context) error { return checkUnlock(c, open) }, ""},
		{"--unlock=passphrase", func(c *cli.Context) error { return checkUnlock(c, open) }, "leave --unlock out"},
		{"--unlock=", func(c *cli.Context) error { return checkUnlock(c, open) }, "leave --unlock out"},
	} {
		var got error
		app := &cli.App{Flags: []cli.Flag{encryptFlag(), unlockFlag(), &cli.BoolFlag{Name: "plain"}}, Action: func(c *cli.Context) error {
			got = test.check(c)
			return nil
		}}
		if err := app.Run(append([]string{"spore"}, strings.Fields(test.args)...)); err != nil {
			t.Fatal(err)
		}
		if (got == nil) != (test.want == "") || got != nil && !strings.Contains(got.Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.args, got, test.want)
		}
	}
}
