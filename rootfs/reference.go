package rootfs

import (
	"fmt"
	"net/netip"
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
	if host := ref.Context().RegistryStr(); !isHost(host) {
		return nil, fmt.Errorf("registry %.128q: %w", host, ErrSource)
	}
	for _, c := range strings.Split(ref.Context().RepositoryStr(), "/") {
		if !isPathComponent(c) {
			return nil, fmt.Errorf("repository %.128q: bad component %.64q: %w", ref.Context().RepositoryStr(), c, ErrSource)
		}
	}
	// A tag begins with a letter, a digit or "_" by Docker's grammar, which the library does not enforce either.
	if tag, ok := ref.(name.Tag); ok && strings.ContainsAny(tag.TagStr()[:1], ".-") {
		return nil, fmt.Errorf("tag %.128q: begins with %.1q: %w", tag.TagStr(), tag.TagStr(), ErrSource)
	}
	return ref, nil
}

// isPathComponent follows Docker's grammar, which the library does not enforce: runs of lower-case letters and
// digits, with ".", "_", "__" or dashes between them.
func isPathComponent(c string) bool {
	alphanumeric := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }
	if c == "" || !alphanumeric(rune(c[0])) || !alphanumeric(rune(c[len(c)-1])) {
		return false
	}
	for _, sep := range strings.FieldsFunc(c, alphanumeric) {
		if sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
	}
	return true
}

// isHost accepts a host name or an address in brackets, with or without a port.
func isHost(host string) bool {
	name, port, hasPort := host, "", false
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port, hasPort = host[:i], host[i+1:], true
	}
	if hasPort && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
		return false
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		_, err := netip.ParseAddr(inner)
		return ok && err == nil && !strings.Contains(inner, "%")
	}
	for _, label := range strings.Split(strings.ToLower(name), ".") {
		if strings.Contains(label, "_") || !isPathComponent(label) {
			return false
		}
	}
	return true
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
