package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kvmCounters are the host kernel's counts for a machine (Documentation/virt/kvm/api.rst 4.132 gives the same by
// descriptor): why the guest was left, and how often its memory had to be mapped. Summed over VM and vCPUs.
var kvmCounters = []struct{ file, name string }{
	{"exits", "exits"},
	{"pf_fixed", "page faults of guest memory"},
	{"io_exits", "port accesses"},
	{"mmio_exits", "device register accesses"},
	{"irq_exits", "host interrupts"},
	{"halt_exits", "HLT"},
	{"host_state_reload", "returns to the VMM or another host context"},
}

// counts adds a process's machine to samples, by counter. Without debugfs there are none.
func counts(pid int, samples map[string][]float64) {
	const debug = "/sys/kernel/debug"
	if _, err := os.Stat(debug + "/kvm"); err != nil {
		if unix.Mount("debugfs", debug, "debugfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") != nil {
			return
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return
	}
	var dirs []string // named after the thread that made the VM
	for _, t := range tasks {
		found, err := filepath.Glob(debug + "/kvm/" + t.Name() + "-*")
		if err != nil {
			return
		}
		dirs = append(dirs, found...)
	}
	if len(dirs) != 1 {
		return
	}
	for _, c := range kvmCounters {
		b, err := os.ReadFile(filepath.Join(dirs[0], c.file))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64); err == nil {
			samples[c.file] = append(samples[c.file], n)
		}
	}
}
