package main

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "512m": 512 << 20, "512M": 512 << 20, "64MiB": 64 << 20, "2gb": 2 << 30, "1.5g": 3 << 29, "1t": 1 << 40, "7b": 7,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1m", "12x", "1e30g", "nan", "1 2m", "infg"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 512 << 20: "512 MiB", 3 << 29: "1.5 GiB"} {
		if got := formatSize(in); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	lookup := func(name string) (string, bool) { return "from-host", name == "HOME" }
	got, err := parseEnv([]string{"A=1", "HOME", "ABSENT", "B="}, lookup)
	if err != nil || !slices.Equal(got, []string{"A=1", "HOME=from-host", "B="}) {
		t.Errorf("parseEnv = %q, %v", got, err)
	}
	if _, err := parseEnv([]string{"=x"}, lookup); err == nil {
		t.Error("parseEnv takes an empty name")
	}
	if got := mergeEnv([]string{"A=1", "B=2"}, []string{"C=3", "A=4"}); !slices.Equal(got, []string{"A=4", "B=2", "C=3"}) {
		t.Errorf("mergeEnv = %q", got)
	}
	got, err = scanEnv(strings.NewReader("# comment\n\n A=1\nB\nC=x=y\n"))
	if err != nil || !slices.Equal(got, []string{"A=1", "B", "C=x=y"}) {
		t.Errorf("scanEnv = %q, %v", got, err)
	}
	if _, err := scanEnv(strings.NewReader("A B=1\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("scanEnv takes a name with a space: %v", err)
	}
}
