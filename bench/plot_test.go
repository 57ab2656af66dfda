package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlots makes a program of every file of results in the tree.
func TestPlots(t *testing.T) {
	files, err := filepath.Glob("results/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no results", err)
	}
	for _, f := range files {
		var b bytes.Buffer
		if err := plotSamples(f, &b); err != nil || strings.Count(b.String(), "\nplot ") == 0 {
			t.Errorf("%s: %d bytes, %v", f, b.Len(), err)
		}
	}
	if err := plotSamples("results/none.json", &bytes.Buffer{}); err == nil {
		t.Error("no file, no error")
	}
}
