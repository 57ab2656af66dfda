package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// row is one line of the results. Where smaller is better, ratio and bar bound Spore's share of the peer's.
type row struct {
	Measure  string  `json:"measure"`
	Where    string  `json:"where"`
	Unit     string  `json:"unit"`
	N        int     `json:"n"`
	SporeP50 float64 `json:"spore_p50"`
	SporeP99 float64 `json:"spore_p99"`
	Peer     string  `json:"peer,omitempty"`
	PeerP50  float64 `json:"peer_p50,omitempty"`
	PeerP99  float64 `json:"peer_p99,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"`
	Bar      string  `json:"bar,omitempty"`
	Met      *bool   `json:"met,omitempty"`
}

// results is the file that is written.
type results struct {
	Machine map[string]string `json:"machine"`
	Rows    []row             `json:"rows"`
	Lost    map[string]int    `json:"guests_lost"` // that were begun anew, or given up after guestTries, by kind

	samples map[string][]float64
}

func newResults() *results {
	r := &results{Lost: map[string]int{}, Machine: map[string]string{
		"cpus": fmt.Sprint(runtime.NumCPU()), "go": runtime.Version(), "time": time.Now().UTC().Format(time.RFC3339),
	}, samples: map[string][]float64{}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Machine["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				r.Machine["cpu"] = strings.TrimSpace(value)
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Machine["load_at_start"] = strings.Fields(string(b))[0]
	}
	return r
}

// quantile is the smallest sample that at least that share of all is not above.
func quantile(samples []float64, share float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := append([]float64{}, samples...)
	sort.Float64s(s)
	return s[min(len(s)-1, int(math.Ceil(share*float64(len(s))))-1+boolInt(share == 0))]
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// bar is a bound on a row.
type bar struct {
	ratio   float64 // of Spore to the peer
	atLeast bool    // Spore must reach it; otherwise it must stay below
	value   float64 // instead of a ratio: a bound on Spore's own figure
}

// add makes a row of samples; peer may be empty.
func (r *results) add(measure, where, unit string, spore []float64, peer string, theirs []float64, b *bar) {
	w := row{Measure: measure, Where: where, Unit: unit, N: len(spore), SporeP50: quantile(spore, 0.5), SporeP99: quantile(spore, 0.99), Peer: peer}
	r.samples[measure+" / spore"] = spore
	if len(theirs) > 0 {
		w.PeerP50, w.PeerP99 = quantile(theirs, 0.5), quantile(theirs, 0.99)
		if w.PeerP50 != 0 {
			w.Ratio = w.SporeP50 / w.PeerP50
		}
		r.samples[measure+" / "+peer] = theirs
	}
	if b != nil && len(spore) > 0 {
		met := false
		switch {
		case b.value != 0:
			w.Bar, met = fmt.Sprintf("≤ %g %s", b.value, unit), w.SporeP50 <= b.value
		case b.atLeast:
			w.Bar, met = fmt.Sprintf("≥ %g × peer", b.ratio), w.Ratio >= b.ratio
		default:
			w.Bar, met = fmt.Sprintf("≤ %g × peer", b.ratio), w.Ratio <= b.ratio
		}
		w.Met = &met
	}
	r.Rows = append(r.Rows, w)
}

func (r *results) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MEASURE\tN\tSPORE P50\tP99\tPEER\tP50\tP99\tUNIT\tRATIO\tBAR\tMET")
	for _, w := range r.Rows {
		met, peer := "", []string{"", "", ""}
		if w.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*w.Met]
		}
		if w.Peer != "" {
			peer = []string{fmt.Sprintf("%.4g", w.PeerP50), fmt.Sprintf("%.4g", w.PeerP99), fmt.Sprintf("%.2f", w.Ratio)}
		}
		fmt.Fprintf(t, "%s\t%d\t%.4g\t%.4g\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.Measure, w.N, w.SporeP50, w.SporeP99, w.Peer, peer[0], peer[1], w.Unit, peer[2], w.Bar, met)
	}
	if len(r.Lost) > 0 {
		fmt.Fprintf(t, "guests lost: %v\n", r.Lost)
	}
	return t.Flush()
}

// write keeps the results and, beside them, the raw samples.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "raw"), 0o755); err != nil {
		return err
	}
	for name, v := range map[string]any{"latest.json": r, "raw/latest.json": r.samples} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
