package snapshot

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Keys are the installation's own signing key, made when it is first needed, and the public keys of others that it trusts.
//
//	DIR/installation.key    the seed, in hexadecimal; 0600
//	DIR/installation.pub    the public key, to give to others
//	DIR/trusted/NAME.pub    public keys of others
type Keys struct{ dir string }

// OpenKeys names the directory, which need not exist.
func OpenKeys(dir string) *Keys { return &Keys{dir} }

const (
	privateFile = "installation.key"
	publicFile  = "installation.pub"
	trustedDir  = "trusted"
	publicExt   = ".pub"
	maxKeyFile  = 4 << 10
)

// ErrUntrusted is matched by the error of a snapshot whose signer is not trusted here.
var ErrUntrusted = errors.New("signed by a key that is not trusted")

// own returns the installation's key, and makes it if there is none.
func (k *Keys) own() (ed25519.PrivateKey, error) {
	path := filepath.Join(k.dir, privateFile)
	seed, err := readKey(path, ed25519.SeedSize)
	if err == nil {
		return ed25519.NewKeyFromSeed(seed), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	if err := k.write(private); err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	seed, err = readKey(path, ed25519.SeedSize) // another process may have been first
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// write makes the two files of a new key, unless there is one.
func (k *Keys) write(private ed25519.PrivateKey) error {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(k.dir, "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(hex.EncodeToString(private.Seed()) + "\n")
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	err = os.Link(tmp.Name(), filepath.Join(k.dir, privateFile)) // whole, and only the first
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	public := private.Public().(ed25519.PublicKey)
	return os.WriteFile(filepath.Join(k.dir, publicFile), []byte(hex.EncodeToString(public)+"\n"), 0o644)
}

// Public is the installation's public key, in hexadecimal.
func (k *Keys) Public() (string, error) {
	private, err := k.own()
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(private.Public().(ed25519.PublicKey)), nil
}

// Trust adds a public key under a name, which is that of a file: letters, digits, '-', '_' and '.'.
func (k *Keys) Trust(name, public string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("trust key: name %q: use letters, digits, '_', '.' and '-', at most 63, first a letter or digit", name)
	}
	b, err := hex.DecodeString(strings.TrimSpace(public))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return fmt.Errorf("trust key %s: want %d hexadecimal digits, as in another installation's %s", name, 2*ed25519.PublicKeySize, publicFile)
	}
	dir := filepath.Join(k.dir, trustedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("trust key: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, name+publicExt), []byte(hex.EncodeToString(b)+"\n"), 0o644)
}

// verify looks whether a trusted key, our own among them, signed the message. The signer names itself in what it signed;
// that is only a hint which key to try.
func (k *Keys) verify(signer string, message, signature []byte) error {
	own, err := k.own()
	if err != nil {
		return err
	}
	trusted := []ed25519.PublicKey{own.Public().(ed25519.PublicKey)}
	others, err := filepath.Glob(filepath.Join(k.dir, trustedDir, "*"+publicExt))
	if err != nil {
		return err
	}
	for _, path := range others {
		b, err := readKey(path, ed25519.PublicKeySize)
		if err != nil {
			return fmt.Errorf("read trusted key: %w", err)
		}
		trusted = append(trusted, b)
	}
	for _, key := range trusted {
		if hex.EncodeToString(key) != signer {
			continue
		}
		if !ed25519.Verify(key, message, signature) {
			return fmt.Errorf("%w: its signature is not of this manifest", ErrDamaged)
		}
		return nil
	}
	return fmt.Errorf("%w: %.16s… (spore snapshot trust adds it, if you know whose it is)", ErrUntrusted, signer)
}

func readKey(path string, size int) ([]byte, error) {
	text, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("%s: want %d hexadecimal digits", path, 2*size)
	}
	return b, nil
}
