package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// units of a size, as Docker's users write them: powers of 1024, with or without "b" or "ib".
var units = map[string]int64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

// parseSize reads 512m, 2g, 1.5g, 1048576 or 64MiB as bytes.
func parseSize(s string) (int64, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyz")
	unit := strings.TrimSuffix(strings.TrimSuffix(text[len(number):], "b"), "i")
	scale, ok := units[unit]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || n < 0 || math.IsNaN(n) || n*float64(scale) > math.MaxInt64/2 {
		return 0, fmt.Errorf("size %q: use a number with k, m, g or t, such as 512m", s)
	}
	return int64(n * float64(scale)), nil
}

// formatSize is the way back, for people: three digits and a unit.
func formatSize(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, u
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.0f %s", value, unit)
}

// parseEnv turns -e arguments into NAME=VALUE. A bare NAME takes its value from our own environment, and is
// left out when it has none there.
func parseEnv(args []string, lookup func(string) (string, bool)) ([]string, error) {
	var env []string
	for _, a := range args {
		name, _, whole := strings.Cut(a, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %q: use NAME=VALUE or NAME", a)
		}
		if whole {
			env = append(env, a)
		} else if v, ok := lookup(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env, nil
}

// readEnvFile reads one variable a line; empty lines and lines that begin with # are left out.
func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer f.Close()
	env, err := scanEnv(f)
	if err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", path, err)
	}
	return env, nil
}

func scanEnv(r io.Reader) ([]string, error) {
	var env []string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("line %d: %q is not a variable name", n, name)
		}
		env = append(env, line)
	}
	return env, lines.Err()
}

// mergeEnv lays over onto base: a later value of a name wins and keeps the earlier place.
func mergeEnv(base, over []string) []string {
	var env []string
	place := map[string]int{}
	for _, e := range append(append([]string{}, base...), over...) {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := place[name]; ok {
			env[i] = e
			continue
		}
		place[name] = len(env)
		env = append(env, e)
	}
	return env
}

// parseLabels turns --label K=V, or K alone, into a map.
func parseLabels(args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	labels := map[string]string{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		if k == "" {
			return nil, fmt.Errorf("--label %q: use NAME=VALUE", a)
		}
		labels[k] = v
	}
	return labels, nil
}
