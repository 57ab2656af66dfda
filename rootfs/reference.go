package rootfs

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// referenceMax is the longest reference accepted, in bytes.
const referenceMax = 512

// parseReference reads a registry reference by Docker's rules: no registry means Docker Hub, no
// organisation there means "library", neither tag nor digest means "latest".
func parseReference(s string) (name.Reference, error) {
	if len(s) > referenceMax {
		return nil, fmt.Errorf("reference of %d bytes, more than %d: %w", len(s), referenceMax, ErrSource)
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	return ref, nil
}

// normalizeName is a reference as Docker shows it: without the defaults of registry and organisation, with a tag
// or a digest.
func normalizeName(s string) (string, error) {
	ref, err := parseReference(s)
	if err != nil {
		return "", err
	}
	short := strings.TrimPrefix(ref.Name(), name.DefaultRegistry+"/")
	if short != ref.Name() {
		short = strings.TrimPrefix(short, "library/")
	}
	// The short form must mean the same thing: "library/localhost/x" must not turn into a registry.
	if again, err := name.ParseReference(short); err != nil || again.Name() != ref.Name() {
		return ref.Name(), nil
	}
	return short, nil
}

// parsePlatform reads "os/arch[/variant]"; "" is Linux on this machine's processor.
func parsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		s = "linux/" + runtime.GOARCH
	}
	p, err := v1.ParsePlatform(s)
	if err != nil {
		return v1.Platform{}, fmt.Errorf("platform %.64q: %w", s, err)
	}
	if p.OS != "linux" || p.Architecture == "" {
		return v1.Platform{}, fmt.Errorf("platform %.64q: guests run Linux: %w", s, ErrSource)
	}
	return *p, nil
}
