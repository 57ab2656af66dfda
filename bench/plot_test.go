package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlots makes a program of results as they are written: a panel for each row that has something to show.
func TestPlots(t *testing.T) {
	r := newResults()
	r.add("it's a wake", "native", "ms", []float64{3, 1, 2}, "", nil, &bar{value: 4})
	r.add("beside another", "native", "ms", []float64{1, 2}, "QEMU", []float64{4, 5}, &bar{ratio: 0.5})
	r.add("once", "native", "ms", []float64{1}, "", nil, nil)
	r.add("nothing", "native", "", []float64{0, 0}, "", nil, nil)
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := plotSamples(filepath.Join(dir, "latest.json"), &b); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{
		"layout 1,3", "$spore0 << EOD\n1 0.3333\n2 0.6667\n3 1\nEOD", "set title 'it''s a wake'", "set arrow from 4,", "title 'QEMU'",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\nplot "); n != 2 {
		t.Errorf("%d panels, want 2", n)
	}
	if n := strings.Count(got, "set arrow from"); n != 1 {
		t.Errorf("%d bars, want the one that is no ratio", n)
	}
	if err := plotSamples(filepath.Join(dir, "none.json"), &bytes.Buffer{}); err == nil {
		t.Error("no file, no error")
	}
}
