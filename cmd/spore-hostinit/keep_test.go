package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"spore/emuhost/frame"
)

// seen is what a client sees of files.
func seen(t *testing.T, paths ...string) (list []frame.Kept) {
	t.Helper()
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, frame.Kept{Path: path, Size: st.Size(), ModTime: st.ModTime().UnixNano()})
	}
	return list
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// TestKept runs a program that is rebuilt now and then: each command gets what its client has seen, with what is beside it.
func TestKept(t *testing.T) {
	bin := t.TempDir()
	k := &kept{dir: filepath.Join(t.TempDir(), "kept")}
	program, plugin := filepath.Join(bin, "program"), filepath.Join(bin, "sub", "plugin")
	write(t, plugin, "plugin", 0o644)
	var runs []string
	for n := range keptSets + 2 {
		content := fmt.Sprint("build ", n)
		write(t, program, content, 0o755)
		at := time.Unix(1000+int64(n), 0)
		if err := os.Chtimes(program, at, at); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			start := frame.Start{Args: []string{program, "x"}, Kept: seen(t, program, plugin)}
			if err := k.run(&start); err != nil {
				t.Fatal(err)
			}
			runs = append(runs, start.Args[0])
			b, err := os.ReadFile(start.Args[0])
			if err != nil || string(b) != content {
				t.Errorf("build %d: %q, %v", n, b, err)
			}
			if st, err := os.Stat(start.Args[0]); err != nil || st.Mode().Perm() != 0o755 {
				t.Errorf("build %d: %v, %v", n, st, err)
			}
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(start.Args[0]), "sub", "plugin")); err != nil || string(b) != "plugin" {
				t.Errorf("build %d: beside it %q, %v", n, b, err)
			}
		}
		if a, b := runs[len(runs)-2], runs[len(runs)-1]; a != b {
			t.Errorf("build %d was copied twice: %s, %s", n, a, b)
		}
	}
	if list, err := os.ReadDir(k.dir); err != nil || len(list) != keptSets {
		t.Errorf("%d sets are kept, %v; want %d", len(list), err, keptSets)
	}
	if _, err := os.Stat(runs[len(runs)-1]); err != nil {
		t.Errorf("the last build is not among them: %v", err)
	}
}

// TestNotKept has clients that name what cannot be kept: the command then runs what is outside.
func TestNotKept(t *testing.T) {
	bin := t.TempDir()
	program := filepath.Join(bin, "program")
	write(t, program, "program", 0o755)
	other := filepath.Join(t.TempDir(), "other")
	write(t, other, "other", 0o644)
	changed := seen(t, program)
	changed[0].ModTime--
	for name, list := range map[string][]frame.Kept{
		"nothing":          nil,
		"it has changed":   changed,
		"it is gone":       {{Path: filepath.Join(bin, "gone")}},
		"another's place":  append(seen(t, program), seen(t, other)...),
		"outside, by dots": append(seen(t, program), frame.Kept{Path: bin + "/../" + filepath.Base(filepath.Dir(other)) + "/other", Size: 5}),
	} {
		k := &kept{dir: filepath.Join(t.TempDir(), "kept")}
		start := frame.Start{Args: []string{program}, Kept: list}
		if err := k.run(&start); (err == nil) != (list == nil) || start.Args[0] != program {
			t.Errorf("%s: %v, runs %s", name, err, start.Args[0])
		}
	}
}
