package snapshot

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// ErrDamaged is matched by the error of a snapshot that is not what was signed.
var ErrDamaged = errors.New("the snapshot is damaged or was tampered with")

// ManifestVersion is the newest version that is read, every one from OldestManifest on. Version 2 is written for what needs it, which is
// encryption: a build that knows version 1 only says so, instead of finding damage.
const (
	ManifestVersion = 2
	OldestManifest  = 1
	plainManifest   = 1
)

const (
	manifestFile  = "manifest.json"
	signatureFile = "manifest.sig"
	admittedFile  = "admitted.json"
	maxManifest   = 1 << 20
	// signed is what a signature is over, before the manifest: it can be nothing else's.
	signedPrefix = "spore snapshot manifest\x00"
)

var (
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)
	idPattern   = regexp.MustCompile(`^[0-9a-f]{16}$`)
)

// Manifest says what a snapshot is. It is signed, and covers everything else by hash.
type Manifest struct {
	Version int               `json:"version"`
	ID      string            `json:"id"`               // 16 hexadecimal digits, at random
	Name    string            `json:"name,omitempty"`   // unique in a store
	Parent  string            `json:"parent,omitempty"` // the snapshot that the sandbox was at before; "" is a root
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Sandbox string            `json:"sandbox"` // id of the sandbox that it was taken of
	Origin  json.RawMessage   `json:"origin"`  // how that was made, for those that wake from it; not read here
	Spec    Spec              `json:"spec"`
	Signer  string            `json:"signer"` // public key, in hexadecimal
	Parts   map[string]Part   `json:"parts"`  // by file name

	Encryption *Encryption `json:"encryption,omitempty"` // nil for none
}

// The files that a manifest covers.
var (
	plainParts  = []string{stateFile, memoryFile, diskFile}
	sealedParts = append(plainParts[:len(plainParts):len(plainParts)], wrappedFile)
)

// sign hashes the parts in dir and writes manifest and signature there.
func sign(ctx context.Context, dir string, m *Manifest, k *Keys) error {
	private, err := k.own()
	if err != nil {
		return err
	}
	m.Version, m.Signer, m.Parts = plainManifest, hex.EncodeToString(private.Public().(ed25519.PublicKey)), map[string]Part{}
	if m.Encryption != nil {
		m.Version = ManifestVersion
	}
	for _, name := range m.parts() {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		m.Parts[name], err = hashFile(ctx, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	signature := ed25519.Sign(private, append([]byte(signedPrefix), b...))
	return errors.Join(
		os.WriteFile(filepath.Join(dir, manifestFile), b, 0o600),
		os.WriteFile(filepath.Join(dir, signatureFile), signature, 0o600))
}

// readManifest reads and verifies the manifest in dir, which must be of that id, or of any for "". Nothing of it is used
// before its signature is good.
func readManifest(dir, id string, k *Keys) (*Manifest, error) {
	b, err := readBounded(filepath.Join(dir, manifestFile), maxManifest)
	if err != nil {
		return nil, err
	}
	signature, err := readBounded(filepath.Join(dir, signatureFile), ed25519.SignatureSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	if err := k.verify(m.Signer, append([]byte(signedPrefix), b...), signature); err != nil {
		return nil, err
	}
	if id != "" && m.ID != id { // SNAP-06: a manifest that was put in another's place
		return nil, fmt.Errorf("%w: it is snapshot %s in the place of %s", ErrDamaged, m.ID, id)
	}
	return m, nil
}

// parseManifest is strict: what it does not know, it does not take.
func parseManifest(b []byte) (*Manifest, error) {
	var v struct{ Version int }
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if v.Version < OldestManifest || v.Version > ManifestVersion {
		return nil, fmt.Errorf("snapshot of version %d, this build reads %d to %d: use the build that made it, or a newer one", v.Version, OldestManifest, ManifestVersion)
	}
	m := &Manifest{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: manifest: something follows it", ErrDamaged)
	}
	switch {
	case !idPattern.MatchString(m.ID), m.Parent != "" && !idPattern.MatchString(m.Parent), m.Name != "" && !namePattern.MatchString(m.Name):
		return nil, fmt.Errorf("%w: manifest: id %.32q, parent %.32q, name %.80q", ErrDamaged, m.ID, m.Parent, m.Name)
	case m.Spec.Version != Version:
		return nil, fmt.Errorf("%w: manifest: machine of version %d", ErrDamaged, m.Spec.Version)
	case m.Encryption != nil && m.Version < 2:
		return nil, fmt.Errorf("%w: manifest: encrypted in version %d", ErrDamaged, m.Version)
	case len(m.Parts) != len(m.parts()):
		return nil, fmt.Errorf("%w: manifest: %d parts", ErrDamaged, len(m.Parts))
	}
	for _, name := range m.parts() {
		if p, ok := m.Parts[name]; !ok || p.Size < 0 {
			return nil, fmt.Errorf("%w: manifest: no %s", ErrDamaged, name)
		}
	}
	return m, nil
}

// verify compares every part with the manifest.
func (m *Manifest) verify(ctx context.Context, d *Dormant) error {
	for _, name := range m.parts() {
		f, err := d.open(name)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		err = m.Parts[name].check(ctx, name, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
