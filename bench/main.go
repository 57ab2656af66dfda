// Command bench measures Spore beside QEMU's microvm, interleaved in one run, on a machine that runs guests. It prints
// its tables and writes results/latest.json. scripts/bench.sh prepares what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"spore/guest"
)

// runLimit ends any single run.
const runLimit = time.Minute

// cmdline is the kernel command line of Spore's guests, and of QEMU's with the same kernel.
var cmdline = guest.Cmdline()

// settings are the flags.
type settings struct {
	bin, out, scratch string
	boots, repeats    int
	wakes             int
	only              string // the parts to measure, by commas; "" is all
	ours              files  // Spore's kernel and agent
	plot              string // results to plot instead of measuring
	cloud             files  // Debian's cloud kernel, with modules and the same agent
}

func main() {
	var s settings
	flag.StringVar(&s.bin, "bin", "bin", "`directory` of the built binaries")
	flag.StringVar(&s.out, "out", "bench/results", "`directory` for the results")
	flag.StringVar(&s.scratch, "scratch", "", "`directory` for disks; default a temporary one")
	flag.IntVar(&s.boots, "boots", 20, "boots of each kind")
	flag.IntVar(&s.wakes, "wakes", 1000, "wakes of a bare-metal guest of each kind")
	flag.IntVar(&s.repeats, "repeats", 3, "runs of each fio job")
	flag.StringVar(&s.only, "only", "", "measure only these `parts`, by commas: wake, pool, wakelinux, boot, own, block, calls, net")
	flag.StringVar(&s.ours.kernel, "kernel", "", "our vmlinux")
	flag.StringVar(&s.ours.image, "image", "", "an EROFS image with fio, iperf3 and ping")
	flag.StringVar(&s.ours.writable, "writable", "", "an empty ext4 file, copied for each guest")
	flag.StringVar(&s.cloud.kernel, "cloud-kernel", "", "Debian's cloud kernel; empty leaves it out")
	flag.StringVar(&s.cloud.initramfs, "cloud-initramfs", "", "its initramfs")
	flag.StringVar(&s.plot, "plot", "", "measure nothing, but write a gnuplot program for the results in `FILE` and the samples in raw beside it")
	flag.Parse()
	do := run
	if s.plot != "" {
		do = func(s settings) error { return plotSamples(s.plot, os.Stdout) }
	}
	if err := do(s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(s settings) error {
	s.ours.vmm, s.ours.initramfs = filepath.Join(s.bin, "spore-vmm"), filepath.Join(s.bin, "initramfs.cpio")
	if s.scratch == "" {
		dir, err := os.MkdirTemp("", "bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		s.scratch = dir
	}
	s.ours.processor = filepath.Join(s.scratch, "processor")
	r := newResults()
	var errs []error
	for _, part := range []struct {
		name string
		do   func(settings, *results) error
	}{{"wake", measureWake}, {"pool", measurePool}, {"netwake", measureNetWake}, {"wakelinux", measureWakeLinux}, {"boot", measureBoot}, {"own", measureOwn}, {"block", measureBlock}, {"calls", measureCalls}, {"net", measureNet}} {
		if s.only != "" && !slices.Contains(strings.Split(s.only, ","), part.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", part.name)
		began := time.Now()
		if err := part.do(s, r); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
		errs = append(errs, r.write(s.out)) // what is measured is kept, whatever comes later
		fmt.Fprintf(os.Stderr, "bench: %s took %s\n", part.name, time.Since(began).Round(time.Second))
	}
	errs = append(errs, r.print(os.Stdout))
	return errors.Join(errs...)
}

// timed starts a machine and returns how long until its agent called, in milliseconds. inspect may look at it then.
func timed(r *results, kind string, start func() (machine, error), inspect func(machine)) (ms float64, err error) {
	err = r.anew(kind, func() error {
		ms, err = timedOnce(start, inspect)
		return err
	})
	return ms, err
}

func timedOnce(start func() (machine, error), inspect func(machine)) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	if err := scrub(); err != nil {
		return 0, err
	}
	began := time.Now()
	m, err := start()
	if err != nil {
		return 0, err
	}
	defer m.stop()
	conn, err := m.agentReady(ctx)
	if err != nil {
		return 0, err
	}
	d := time.Since(began)
	defer conn.Close()
	if inspect != nil {
		inspect(m)
	}
	return float64(d.Microseconds()) / 1e3, nil
}
