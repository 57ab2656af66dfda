package rootfs_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"spore/rootfs"
)

func TestNames(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, want := range map[string]string{
		"debian":                        "debian:latest",
		"debian:12":                     "debian:12",
		"docker.io/library/debian:12":   "debian:12",
		"docker.io/debian:12":           "debian:12",
		"index.docker.io/org/app":       "org/app:latest",
		"library/debian":                "debian:latest",
		"localhost:5000/app":            "localhost:5000/app:latest",
		"example.com/a/b/c:v1.2_3-x":    "example.com/a/b/c:v1.2_3-x",
		"debian@" + digest:              "debian@" + digest,
		"debian:12@" + digest:           "debian@" + digest,
		"[::1]:5000/app":                "[::1]:5000/app:latest",
		"Debian":                        "",
		"a//b":                          "",
		"a/../b":                        "",
		"a:b:c":                         "",
		"a@sha256:1":                    "",
		" a":                            "",
		"a:..":                          "",
		"a:-x":                          "",
		"a:1..2":                        "a:1..2",
		"a\n":                           "",
		"":                              "",
		strings.Repeat("a/", 300) + "a": "",
	} {
		got, err := rootfs.NormalizeName(name)
		if got != want || (want == "") != errors.Is(err, rootfs.ErrSource) {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
}

// FuzzReference: a name that is accepted is short, printable, cannot be taken for a path upwards, and names itself.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"debian", "debian:12", "localhost:5000/a/b@sha256:" + strings.Repeat("0", 64), "docker.io/library/x", "a/../b", "é", "library/localhost/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := rootfs.NormalizeName(s)
		if err != nil {
			return
		}
		upwards := slices.Contains(strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("/:@", r) }), "..")
		if len(name) > 1024 || upwards || strings.HasPrefix(name, "/") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("%q became %q", s, name)
		}
		if again, err := rootfs.NormalizeName(name); err != nil || again != name {
			t.Fatalf("%q became %q became %q (%v)", s, name, again, err)
		}
	})
}
