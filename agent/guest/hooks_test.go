package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/agent"
)

// TestHooks runs the programs of an image when its machine is about to be saved and when it goes on as another.
func TestHooks(t *testing.T) {
	dial, a := guest(t)
	a.hooks = t.TempDir()
	said := filepath.Join(a.hooks, "said")
	hook := func(kind, name, script string, mode os.FileMode) {
		t.Helper()
		dir := filepath.Join(a.hooks, kind)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := agent.Hold(t.Context(), dial); err != nil {
		t.Errorf("without hooks: %v", err)
	}
	hook(beforeSnapshot, "20-second", "echo second >>"+said, 0o755)
	hook(beforeSnapshot, "10-first", "echo first >>"+said, 0o755)
	hook(beforeSnapshot, "30-not-executable", "echo third >>"+said, 0o644)
	hook(afterRestore, "10-other", "echo restored >>"+said, 0o755)
	if err := agent.Hold(t.Context(), dial); err != nil {
		t.Fatal(err)
	}
	if err := a.runHooks(afterRestore); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(said); err != nil || string(b) != "first\nsecond\nrestored\n" {
		t.Errorf("hooks said %q, %v", b, err)
	}
	hook(beforeSnapshot, "15-fails", "exit 3", 0o755)
	err := agent.Hold(t.Context(), dial)
	if err == nil || !strings.Contains(err.Error(), "15-fails") || !strings.Contains(err.Error(), "code 3") {
		t.Errorf("a failing hook: %v", err)
	}
	if a.held.Load() {
		t.Error("the machine is held although it will not be saved")
	}
}
