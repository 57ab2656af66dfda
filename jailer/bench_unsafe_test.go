package jailer

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is what both benchmarks start: this binary, which exits at once.
const exitAtOnce = "SPORE_TEST_EXIT"

func openSelf(b *testing.B) *os.File {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { exe.Close() })
	return exe
}

// BenchmarkPlain is a start without a jail.
func BenchmarkPlain(b *testing.B) {
	measure(b, func() time.Duration {
		began := time.Now()
		p, err := os.StartProcess("/proc/self/exe", []string{"inmate"}, &os.ProcAttr{Env: []string{exitAtOnce + "=1"}})
		d := time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		p.Wait()
		return d
	})
}

// BenchmarkJail is a start in a jail; the difference is what the jail adds.
func BenchmarkJail(b *testing.B) {
	exe := openSelf(b)
	measure(b, func() time.Duration { d, _ := jailOnce(b, exe, nil); return d })
}

// BenchmarkJailByStep is the same with the time that each kind of call of the plan takes, in microseconds.
func BenchmarkJailByStep(b *testing.B) {
	if !kernelAtLeast(6, 3) {
		b.Skip("the child has no memory of ours here to write times into")
	}
	exe := openSelf(b)
	steps := map[string][]float64{}
	var order []string
	for b.Loop() {
		var stamps []*unix.Timespec
		var names []string
		jailOnce(b, exe, func(p *plan) { names, stamps = stamp(p) })
		sums := map[string]float64{}
		for i, name := range names {
			if _, seen := sums[name]; !seen && !slices.Contains(order, name) {
				order = append(order, name)
			}
			sums[name] += float64(stamps[i+1].Nano()-stamps[i].Nano()) / 1e3
		}
		for name, v := range sums {
			steps[name] = append(steps[name], v)
		}
		runtime.KeepAlive(stamps)
	}
	for i, name := range order {
		slices.Sort(steps[name])
		b.ReportMetric(steps[name][len(steps[name])/2], fmt.Sprintf("%02d:%s-µs", i, name))
	}
}

// stamp puts a look at the clock before each call of the plan up to the filter, which does not let it through. The child
// writes into our memory.
func stamp(p *plan) (names []string, stamps []*unix.Timespec) {
	var calls []call
	for i, c := range p.calls {
		t := new(unix.Timespec)
		if c.nr != unix.SYS_EXECVEAT {
			calls = append(calls, call{name: "clock", step: step{nr: unix.SYS_CLOCK_GETTIME, args: [6]uintptr{unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(t))}}})
			stamps = append(stamps, t)
			if i > 0 {
				names = append(names, group(p.calls[i-1].name))
			}
		}
		calls = append(calls, c)
	}
	p.calls = calls
	return names, stamps
}

// group is the name that a call is counted under.
func group(name string) string {
	var out []rune
	for _, r := range name {
		if r == ',' || r >= '0' && r <= '9' {
			break
		}
		if r == ' ' {
			r = '-'
		}
		out = append(out, r)
	}
	return string(out)
}

func jailOnce(b *testing.B, exe *os.File, inspect func(*plan)) (time.Duration, *Process) {
	uid, gid := Identity(9)
	began := time.Now()
	p, err := start(Config{Exe: exe, Env: []string{exitAtOnce + "=1"}, UID: uid, GID: gid, Without: Optional()}, inspect)
	d := time.Since(began)
	if err != nil {
		b.Fatal(err)
	}
	p.Wait()
	unix.Close(p.PidFD)
	return d, p
}

// measure reports the median of what f returns.
func measure(b *testing.B, f func() time.Duration) {
	var all []time.Duration
	for b.Loop() {
		all = append(all, f())
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1e3, "p99-ms")
}
