package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bootMemory is the guest's memory in the boot runs, in bytes.
const bootMemory = 128 << 20

// qemuBoot is a way to boot a guest under QEMU, and what it took.
type qemuBoot struct {
	name, peer string
	files      files
	args       []string
	cmdline    string
	bar        bar
	ms, memory []float64
	exits      map[string][]float64
}

// qemuBoots are the ways that boots of ours are compared with.
func qemuBoots(s settings, ours files) []*qemuBoot {
	all := []*qemuBoot{
		{name: "cold boot, same kernel, agent and devices, two of ours taken up later", peer: "QEMU microvm, tuned", files: ours, args: slices.Concat(tuned, ofOurs), cmdline: cmdline, bar: bar{ratio: 0.5}},
		{name: "cold boot, same kernel and agent", peer: "QEMU microvm, tuned, only vsock", files: ours, args: tuned, cmdline: cmdline, bar: bar{ratio: 0.5}},
	}
	if s.cloud.kernel != "" {
		all = append(all, &qemuBoot{name: "cold boot", peer: "QEMU microvm, Debian cloud kernel", files: s.cloud, args: plain, cmdline: "console=ttyS0 quiet panic=-1 rdinit=/init", bar: bar{ratio: 0.3}})
	}
	return all
}

// measureBoot times process start → agent ready, interleaved, and reads the processes' memory meanwhile.
func measureBoot(s settings, r *results) error {
	ours := files{vmm: s.ours.vmm, kernel: s.ours.kernel, initramfs: s.ours.initramfs, processor: s.ours.processor}
	peers := qemuBoots(s, ours)
	var spore, memory []float64
	var exits map[string][]float64
	for i := range s.boots + 1 {
		if i <= 1 { // the first of each only fills the page cache
			spore, memory, exits = nil, nil, map[string][]float64{}
			for _, q := range peers {
				q.ms, q.memory, q.exits = nil, nil, map[string][]float64{}
			}
		}
		ms, err := timed(r, "spore", func() (machine, error) { return startSpore(ours, bootMemory, false) }, func(m machine) {
			memory = append(memory, besideRAM(m.pid()))
			counts(m.pid(), exits)
		})
		if err != nil {
			return fmt.Errorf("spore: %w", err)
		}
		spore = append(spore, ms)
		for _, q := range peers {
			ms, err := timed(r, "qemu", func() (machine, error) { return startQEMU(q.files, bootMemory, q.args, q.cmdline) }, func(m machine) {
				q.memory = append(q.memory, besideRAM(m.pid()))
				counts(m.pid(), q.exits)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", q.peer, err)
			}
			q.ms = append(q.ms, ms)
		}
	}
	const where = "emulated host"
	for _, q := range peers {
		r.add(q.name, where, "ms", spore, q.peer, q.ms, &q.bar)
	}
	same := peers[0]
	r.add("memory beside guest RAM", where, "MiB", memory, same.peer, same.memory, &bar{value: 5})
	for _, c := range kvmCounters {
		if len(exits[c.file]) > 0 {
			r.add(c.name+" until the agent is ready", where, "", exits[c.file], same.peer, same.exits[c.file], nil)
		}
	}
	return nil
}

// besideRAM is the resident memory, in MiB, of all mappings of a process but those as large as guest RAM.
func besideRAM(pid int) float64 {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		return 0
	}
	defer f.Close()
	var sum, size int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Size:":
			size = n << 10
		case "Rss:":
			if size < bootMemory-4<<20 {
				sum += n << 10
			}
		}
	}
	return float64(sum) / (1 << 20)
}

// flatReset is a bare-metal guest whose first instructions end the machine: mov al, 0xfe; out 0x64, al; hlt.
var flatReset = []byte{0xb0, 0xfe, 0xe6, 0x64, 0xf4}

// pvhExit is the same for QEMU, as an ELF file with a PVH entry note: mov al, 0; out 0xf4, al to isa-debug-exit.
func pvhExit() []byte {
	code := []byte{0xb0, 0x00, 0xe6, 0xf4, 0xf4}
	return elf32PVH(code)
}

// measureOwn times process start → first guest instruction: the guest's first instruction ends the machine, so
// the end is taken for it.
func measureOwn(s settings, r *results) error {
	flat, pvh := filepath.Join(s.scratch, "flat"), filepath.Join(s.scratch, "pvh.elf")
	for path, b := range map[string][]byte{flat: flatReset, pvh: pvhExit()} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
	}
	var spore, qemu []float64
	for i := range s.boots + 1 {
		if err := scrub(); err != nil {
			return err
		}
		began := time.Now()
		m, err := startSpore(files{vmm: s.ours.vmm, kernel: flat, processor: s.ours.processor}, bootMemory, true)
		if err != nil {
			return fmt.Errorf("spore: %w", err)
		}
		_, err = m.ended(runLimit)
		d := time.Since(began)
		m.stop()
		if err != nil {
			return fmt.Errorf("spore: %w", err)
		}
		spore = append(spore, float64(d.Microseconds())/1e3)
		args := append([]string{}, tuned...)
		args = append(args, "-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none", "-kernel", pvh, "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
		if err := scrub(); err != nil {
			return err
		}
		began = time.Now()
		out, err := exec.Command("qemu-system-x86_64", args...).CombinedOutput()
		d = time.Since(began)
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
			return fmt.Errorf("QEMU: %v\n%s", err, out)
		}
		qemu = append(qemu, float64(d.Microseconds())/1e3)
		if i == 0 {
			spore, qemu = nil, nil
		}
	}
	r.add("process start to first guest instruction", "emulated host", "ms", spore, "QEMU microvm, tuned", qemu, &bar{ratio: 0.1})
	return nil
}
