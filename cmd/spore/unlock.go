package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"spore/snapshot"
)

// encryptFlag and unlockFlag say what the key of an encrypted snapshot is wrapped with.
func encryptFlag() cli.Flag {
	return &cli.StringFlag{
		Name:  "encrypt",
		Usage: "encrypt memory, disk and state, with a key that `WITH` opens: passphrase, passphrase:FILE, key:FILE (32 random bytes or more), age:RECIPIENT or age:FILE",
	}
}

func unlockFlag() cli.Flag {
	return &cli.StringFlag{
		Name:  "unlock",
		Usage: "open an encrypted snapshot with `WITH`: passphrase, passphrase:FILE, key:FILE or age:FILE (of identities); it is decrypted into memory only",
	}
}

// maxSecret bounds a file with a passphrase or a key, in bytes.
const maxSecret = 64 << 10

// checkEncrypt refuses what of --encrypt and --plain does not go together, before anything is saved.
func checkEncrypt(c *cli.Context, fromEncrypted bool) error {
	switch encrypt, plain := c.IsSet("encrypt"), c.Bool("plain"); {
	case encrypt && plain:
		return usagef(c, "--encrypt and --plain say the opposite of each other: leave one out")
	case fromEncrypted && !encrypt && !plain:
		return errors.New("the sandbox came from an encrypted snapshot: say --encrypt, or --plain to have this one unencrypted on the disk")
	}
	return nil
}

// checkUnlock refuses --unlock where nothing is locked: a user who gives a key believes that it protects something.
func checkUnlock(c *cli.Context, m *snapshot.Manifest) error {
	if c.IsSet("unlock") && m.Encryption == nil {
		return usagef(c, "snapshot %s is not encrypted, there is nothing to open: leave --unlock out", m.Ref())
	}
	return nil
}

// wrapOf is what --encrypt asks for.
func wrapOf(c *cli.Context) (*snapshot.Wrap, error) {
	kind, arg, given := strings.Cut(c.String("encrypt"), ":")
	switch snapshot.KeyKind(kind) {
	case snapshot.KeyPassphrase:
		secret, err := passphrase(arg, given, true)
		if err != nil {
			return nil, err
		}
		return snapshot.WrapPassphrase(secret)
	case snapshot.KeyFile:
		b, err := readSecret(arg)
		if err != nil {
			return nil, err
		}
		return snapshot.WrapKeyFile(b)
	case snapshot.KeyAge:
		if strings.HasPrefix(arg, "age1") {
			return snapshot.WrapAge(strings.NewReader(arg))
		}
		b, err := readSecret(arg)
		if err != nil {
			return nil, err
		}
		return snapshot.WrapAge(bytes.NewReader(b))
	}
	return nil, usagef(c, "--encrypt %q: use passphrase, passphrase:FILE, key:FILE, age:RECIPIENT or age:FILE", c.String("encrypt"))
}

// unwrapOf is what --unlock says, or what is asked for where it says nothing.
func unwrapOf(c *cli.Context, m *snapshot.Manifest) (*snapshot.Unwrap, error) {
	how := c.String("unlock")
	if how == "" {
		if how = string(m.Encryption.Key); m.Encryption.Key != snapshot.KeyPassphrase {
			return nil, fmt.Errorf("snapshot %s: %w: say what opens it, --unlock %.32s:FILE", m.Ref(), snapshot.ErrEncrypted, printable(how))
		}
	}
	kind, arg, given := strings.Cut(how, ":")
	switch snapshot.KeyKind(kind) {
	case snapshot.KeyPassphrase:
		secret, err := passphrase(arg, given, false)
		if err != nil {
			return nil, err
		}
		return snapshot.UnwrapPassphrase(secret)
	case snapshot.KeyFile, snapshot.KeyAge:
		b, err := readSecret(arg)
		if err != nil {
			return nil, err
		}
		if snapshot.KeyKind(kind) == snapshot.KeyAge {
			return snapshot.UnwrapAge(bytes.NewReader(b))
		}
		return snapshot.UnwrapKeyFile(b)
	}
	return nil, usagef(c, "--unlock %q: use passphrase, passphrase:FILE, key:FILE or age:FILE", how)
}

// readSecret reads a file with a key, all of it.
func readSecret(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("name the file after the colon: passphrase:FILE, key:FILE or age:FILE")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s: more than %d bytes", path, maxSecret)
	}
	return b, err
}

// passphrase is the first line of a file or, where none is given, what the user types, twice if it is new.
func passphrase(path string, given, isNew bool) (string, error) {
	if given {
		b, err := readSecret(path)
		if err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			return "", fmt.Errorf("%s: its first line is empty", path)
		}
		return line, nil
	}
	in := int(os.Stdin.Fd())
	if !term.IsTerminal(in) {
		return "", errors.New("standard input is no terminal to ask for a passphrase on: use passphrase:FILE")
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(os.Stderr, prompt)
		b, err := term.ReadPassword(in)
		fmt.Fprintln(os.Stderr)
		return string(b), err
	}
	first, err := ask("Passphrase: ")
	if err != nil || !isNew {
		return first, err
	}
	again, err := ask("Once more: ")
	if err == nil && again != first {
		err = errors.New("the two passphrases differ")
	}
	return first, err
}

// openVolatile opens the store in memory for what is encrypted at rest.
func openVolatile() (*snapshot.Store, error) {
	return snapshot.OpenVolatile(volatileDirs()...)
}

func volatileDirs() []string { return []string{"/dev/shm", os.Getenv("XDG_RUNTIME_DIR"), "/run"} }

// unlock decrypts a snapshot into memory. What it returns is there until discard is called.
func unlock(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest) (_ *snapshot.Dormant, discard func() error, err error) {
	key, err := unwrapOf(c, m)
	if err != nil {
		return nil, nil, err
	}
	volatile, err := openVolatile()
	if err != nil {
		return nil, nil, err
	}
	pending, err := volatile.Begin()
	if err != nil {
		return nil, nil, err
	}
	from, err := store.Unlock(c.Context, m, key, pending)
	if err != nil {
		return nil, nil, errors.Join(err, pending.Discard())
	}
	return from, pending.Discard, nil
}
