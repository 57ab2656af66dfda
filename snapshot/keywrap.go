package snapshot

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// KeyKind is what the key of an encrypted snapshot is wrapped with.
type KeyKind string

// The kinds.
const (
	KeyPassphrase KeyKind = "passphrase"
	KeyFile       KeyKind = "key"
	KeyAge        KeyKind = "age"
)

// ErrKey is matched by the error of an encrypted snapshot that the key given does not open.
var ErrKey = errors.New("the key does not open the snapshot")

// Wrap wraps the keys of snapshots that are being made, in the format of age (age-encryption.org/v1). A wrapped key is small, and
// whoever has it needs the secret as well.
type Wrap struct {
	Kind       KeyKind
	recipients []age.Recipient
}

// Unwrap opens what Wrap has wrapped.
type Unwrap struct {
	Kind       KeyKind
	identities []age.Identity
}

// minKeyFile is the least that a key file must hold, in bytes. They must be random: nothing slows down who guesses them.
const minKeyFile = 32

// A passphrase goes through scrypt, 2^18 rounds, which takes a quarter of a GiB and about a second; a key file through as
// good as none.
const keyFileWork = 10

// WrapPassphrase wraps keys with a passphrase.
func WrapPassphrase(passphrase string) (*Wrap, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return &Wrap{KeyPassphrase, []age.Recipient{r}}, nil
}

// UnwrapPassphrase is the other side of WrapPassphrase.
func UnwrapPassphrase(passphrase string) (*Unwrap, error) {
	i, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return &Unwrap{KeyPassphrase, []age.Identity{i}}, nil
}

// WrapKeyFile wraps keys with the content of a key file: 32 random bytes or more.
func WrapKeyFile(content []byte) (*Wrap, error) {
	secret, err := keyFileSecret(content)
	if err != nil {
		return nil, err
	}
	r, err := age.NewScryptRecipient(secret)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	r.SetWorkFactor(keyFileWork)
	return &Wrap{KeyFile, []age.Recipient{r}}, nil
}

// UnwrapKeyFile is the other side of WrapKeyFile.
func UnwrapKeyFile(content []byte) (*Unwrap, error) {
	secret, err := keyFileSecret(content)
	if err != nil {
		return nil, err
	}
	i, err := age.NewScryptIdentity(secret)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	i.SetMaxWorkFactor(keyFileWork)
	return &Unwrap{KeyFile, []age.Identity{i}}, nil
}

func keyFileSecret(content []byte) (string, error) {
	if len(content) < minKeyFile {
		return "", fmt.Errorf("key file of %d bytes: it needs %d random ones (head -c %d /dev/urandom)", len(content), minKeyFile, minKeyFile)
	}
	sum := sha256.Sum256(append([]byte("spore snapshot key file\x00"), content...))
	return hex.EncodeToString(sum[:]), nil
}

// WrapAge wraps keys for age recipients, one a line.
func WrapAge(recipients io.Reader) (*Wrap, error) {
	r, err := age.ParseRecipients(recipients)
	if err != nil {
		return nil, fmt.Errorf("age recipients: %w", err)
	}
	return &Wrap{KeyAge, r}, nil
}

// UnwrapAge is the other side of WrapAge: identities as age-keygen writes them.
func UnwrapAge(identities io.Reader) (*Unwrap, error) {
	i, err := age.ParseIdentities(identities)
	if err != nil {
		return nil, fmt.Errorf("age identities: %w", err)
	}
	return &Unwrap{KeyAge, i}, nil
}

// newKey makes a key and wraps it.
func (w *Wrap) newKey() (key, wrapped []byte, err error) {
	key = make([]byte, keySize)
	rand.Read(key) // never fails, see crypto/rand
	var out bytes.Buffer
	to, err := age.Encrypt(&out, w.recipients...)
	if err == nil {
		_, err = to.Write(key)
	}
	if err == nil {
		err = to.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("wrap key: %w", err)
	}
	return key, out.Bytes(), nil
}

// key opens a wrapped key.
func (u *Unwrap) key(wrapped []byte) ([]byte, error) {
	from, err := age.Decrypt(bytes.NewReader(wrapped), u.identities...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key, err := io.ReadAll(io.LimitReader(from, keySize+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("%w: it holds another number of bytes than %d", ErrKey, keySize)
	}
	return key, nil
}
