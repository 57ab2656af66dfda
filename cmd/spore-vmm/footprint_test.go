package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"spore/vmm/api"
)

// footprintBar is what the VMM may hold in memory beyond the guest's RAM, its own text included.
const footprintBar = 5 << 20

// footprint sums the resident bytes of every mapping of a process but those of the guest's RAM, which are the ones
// that hold exactly ram bytes.
func footprint(t *testing.T, pid int, ram int64) (own int64, report string) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var name string
	var guest bool
	var b strings.Builder
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		var from, to uint64
		var kib int64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			name, guest = line, int64(to-from) == ram
		} else if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kib); n == 1 && !guest && kib > 0 {
			own += kib << 10
			fmt.Fprintf(&b, "%6d KiB  %s\n", kib, name)
		}
	}
	return own, b.String()
}

func TestFootprint(t *testing.T) {
	cmd, _, _, event := launched(t, false, spinningGuest)
	event()
	own, report := footprint(t, cmd.Process.Pid, api.MinMemory)
	t.Logf("%.2f MiB beyond guest RAM\n%s", float64(own)/(1<<20), report)
	if own > footprintBar {
		t.Errorf("%d bytes, at most %d", own, footprintBar)
	}
}
