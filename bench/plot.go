package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A plot has a panel for each row of a file of results: the share of the samples that are not above a value, Spore's and its
// peer's. What gnuplot makes of it is one SVG.
const (
	panelsAcross = 3
	panelWidth   = 460 // pixels
	panelHeight  = 260
	maxPoints    = 80 // of a line; of more samples some are left out, never the last
)

// plotSamples writes the gnuplot program for a file of results and the samples in the directory raw beside it.
func plotSamples(results string, to io.Writer) error {
	var r struct{ Rows []row }
	var samples map[string][]float64
	for path, v := range map[string]any{results: &r, filepath.Join(filepath.Dir(results), "raw", filepath.Base(results)): &samples} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, v); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	rows := slices.DeleteFunc(r.Rows, func(w row) bool { return len(samples[w.Measure+" / spore"]) < 2 || w.SporeP99 == 0 })
	if len(rows) == 0 {
		return fmt.Errorf("%s: no row has more than one sample that is not 0", results)
	}
	down := (len(rows) + panelsAcross - 1) / panelsAcross
	fmt.Fprintf(to, "set terminal svg size %d,%d font 'sans,11' background 'white'\n", panelsAcross*panelWidth, down*panelHeight)
	fmt.Fprintf(to, "set multiplot layout %d,%d\nset yrange [0:1]\nset grid\nset key below\nset style data steps\n", down, panelsAcross)
	for i, w := range rows {
		plotRow(to, i, w, samples)
	}
	_, err := fmt.Fprintln(to, "unset multiplot")
	return err
}

func plotRow(to io.Writer, i int, w row, samples map[string][]float64) {
	fmt.Fprintf(to, "$spore%d << EOD\n%sEOD\n", i, shares(samples[w.Measure+" / spore"]))
	lines := fmt.Sprintf("$spore%d lw 2 title 'Spore'", i)
	if theirs := samples[w.Measure+" / "+w.Peer]; w.Peer != "" && len(theirs) > 1 {
		fmt.Fprintf(to, "$peer%d << EOD\n%sEOD\n", i, shares(theirs))
		lines += fmt.Sprintf(", $peer%d lw 2 dt 2 title %s", i, quoted(w.Peer))
	}
	fmt.Fprintf(to, "set title %s font ',9'\nset xlabel %s\nunset arrow\n", quoted(w.Measure), quoted(strings.TrimSpace(w.Unit+"  "+w.Bar)))
	var bar float64
	if n, _ := fmt.Sscanf(w.Bar, "≤ %f "+w.Unit, &bar); n == 1 && !strings.Contains(w.Bar, "peer") {
		fmt.Fprintf(to, "set arrow from %g, graph 0 to %g, graph 1 nohead dt 3\n", bar, bar)
	}
	fmt.Fprintf(to, "plot [0:*] %s\n", lines)
}

// shares are the samples in order, each with the share of all that are not above it.
func shares(samples []float64) string {
	s := slices.Sorted(slices.Values(samples))
	var b strings.Builder
	step := (len(s) + maxPoints - 1) / maxPoints
	for i, v := range s {
		if (len(s)-1-i)%step == 0 {
			fmt.Fprintf(&b, "%g %.4g\n", v, float64(i+1)/float64(len(s)))
		}
	}
	return b.String()
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "' noenhanced" }
