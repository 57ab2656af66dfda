package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"spore/jailer"
	"spore/jailer/seccomp"
	"spore/lab/probe"
	"spore/sandbox"
	"spore/vmm/policy"
)

// Check is one attempt from inside the jail.
type Check struct {
	Claim    string `json:"claim"`
	Stage    string `json:"stage"`    // of the system-call filters; bare is without them
	Action   string `json:"action"`   // of package probe
	Expected string `json:"expected"` // " or " between what different kernels say
	Observed string `json:"observed"`
}

// OK says whether the jail did what it claims.
func (c Check) OK() bool {
	return slices.Contains(strings.Split(c.Expected, " or "), c.Observed)
}

// Killed is the observation of a process that its filter ended.
const Killed = "killed"

// Report is what attest found.
type Report struct {
	Missing []jailer.Layer `json:"missing,omitempty"` // layers that this host does not offer
	Posture []Fact         `json:"posture"`
	Checks  []Check        `json:"checks"`
}

// Failures returns how many facts and checks are not as claimed.
func (r Report) Failures() int {
	n := 0
	for _, f := range r.Posture {
		if !f.OK() {
			n++
		}
	}
	for _, c := range r.Checks {
		if !c.OK() {
			n++
		}
	}
	return n
}

// Attest is one attestation.
type Attest struct {
	Probe   string         // path of spore-probe
	Without []jailer.Layer // layers that may be missing
	Calls   bool           // try every system call by number too
	Brief   bool           // only look at a process in the jail, and try nothing
	Workers int            // probes at a time; at least 1
}

// Run puts probes into real jails until all has been tried, or ctx ends.
func (a Attest) Run(ctx context.Context) (Report, error) {
	var r Report
	var err error
	if r.Posture, r.Missing, err = a.posture(); err != nil {
		return r, err
	}
	if a.Brief {
		return r, nil
	}
	r.Checks = Checks()
	if a.Calls {
		r.Checks = append(r.Checks, callChecks()...)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	next := make(chan int)
	for worker := range max(a.Workers, 1) {
		wg.Go(func() {
			for i := range next {
				c := &r.Checks[i]
				observed, probeErr := a.observe(worker, c.Stage, c.Action)
				mu.Lock()
				c.Observed, err = observed, errors.Join(err, probeErr)
				mu.Unlock()
			}
		})
	}
	for i := range r.Checks {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return r, errors.Join(err, context.Cause(ctx))
}

// start jails a probe and returns the other end of its report.
func (a Attest) start(worker int, stage, action string) (*sandbox.Jailed, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "report"), os.NewFile(uintptr(fds[1]), "probe")
	defer theirs.Close()
	p, err := sandbox.Jail{
		VMM: a.Probe, ID: fmt.Sprintf("attest-%d-%d", os.Getpid(), worker), Files: []*os.File{theirs}, CPUs: 1, Memory: 64 << 20,
		Without: a.Without, Args: []string{stage, action}, Bare: stage == probe.Bare,
	}.Start()
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	return p, ours, nil
}

// observe runs one probe to its end.
func (a Attest) observe(worker int, stage, action string) (string, error) {
	p, report, err := a.start(worker, stage, action)
	if err != nil {
		return "", err
	}
	said, err := io.ReadAll(report)
	report.Close()
	st, waitErr := p.Wait()
	unix.Close(p.PidFD)
	if err := errors.Join(err, waitErr, p.Release()); err != nil {
		return "", err
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		if ws.Signal() == unix.SIGSYS {
			return Killed, nil
		}
		return ws.Signal().String(), nil
	}
	if len(said) == 0 {
		return st.String(), nil
	}
	return string(said), nil
}

// posture looks at a probe that waits, in the running stage.
func (a Attest) posture() ([]Fact, []jailer.Layer, error) {
	p, report, err := a.start(0, probe.Running, "wait")
	if err != nil {
		return nil, nil, err
	}
	var b [16]byte
	_, err = report.Read(b[:]) // it is where it waits
	var facts []Fact
	if err == nil {
		facts, err = Posture(p.Pid, Lacks(p.Missing)...)
	}
	report.Close()
	_, waitErr := p.Wait()
	unix.Close(p.PidFD)
	return facts, p.Missing, errors.Join(err, waitErr, p.Release())
}

// Lacks are the namespaces that a jail without these layers shares with the host.
func Lacks(missing []jailer.Layer) []string {
	for _, l := range missing {
		if l == jailer.TimeSpace {
			return []string{"time"}
		}
	}
	return nil
}

// past are calls that Linux lets past every filter, for its own trampolines: a program that makes them itself gets SIGILL,
// which ends a Go program with 2, or an error (kernel/events/uprobes.c; since Linux 6.14 in kernel/seccomp.c).
var past = map[int]struct{ name, observed string }{
	335: {"uretprobe", "exit status 2"},
	336: {"uprobe", "ENXIO"},
}

// callChecks is every system call by number, in the stages that see guest data. What the table allows is not tried: it
// would do what it is for.
func callChecks() []Check {
	const calls = 470 // Linux 6.18
	var all []Check
	for _, s := range policy.Stages() {
		if s.Name == probe.Build {
			continue
		}
		for nr := range calls {
			name := policy.CallNames[nr]
			want := Killed
			switch d := s.Policy.Decide(name, [6]uint64{}); {
			case name != "" && d == seccomp.Allow:
				continue
			case name != "" && d != seccomp.Kill:
				want = unix.ErrnoName(unix.Errno(d &^ seccomp.Refuse))
			}
			switch {
			case past[nr].name != "":
				name, want = past[nr].name, want+" or "+past[nr].observed
			case name == "":
				name = "unassigned"
			}
			all = append(all, Check{Claim: "no " + name, Stage: s.Name, Action: fmt.Sprintf("%s%d", probe.CallPrefix, nr), Expected: want})
		}
	}
	return all
}
