package sandbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/vmm/policy"
)

// env is the VMM's whole environment: its heap is a megabyte or two, which huge pages would round up to four, and it has a
// processor for itself beside those of the vCPUs.
func (j Jail) env() []string {
	return []string{"GODEBUG=disablethp=1", fmt.Sprintf("GOMAXPROCS=%d", j.CPUs+1)}
}

// vmmOverhead is what the VMM may use of memory beside the guest's, in bytes: its own, page tables, socket buffers and
// some page cache of its disks, which the kernel charges to it.
const vmmOverhead = 192 << 20

// vmmThreads bounds the VMM's threads: vCPUs, disk workers, and those of the runtime.
const vmmThreads = 512

// vmmIOWeight is half of what the host's own programs have: where both want a disk, a sandbox gives way.
const vmmIOWeight = 50

// cgroupLimit bounds the wait for a killed process to be gone.
const cgroupLimit = 10 * time.Second

// Jail is what a VMM is jailed with: it and nothing else of the host is what the guest can reach.
type Jail struct {
	VMM     string         // path of spore-vmm
	ID      string         // of the sandbox
	Files   []*os.File     // descriptor 3 and on: the configuration and api.Config's files
	CPUs    int            // of the guest
	Memory  int64          // of the guest, in bytes
	Disk    int64          // the largest writable disk, in bytes
	Disks   string         // the directory that it is in; "" if there is none
	Without []jailer.Layer // that may be missing

	Args []string // of spore-probe, which spore lab puts in the VMM's place; nil otherwise
	Bare bool     // without the system-call filter, to see what the other layers do by themselves; spore lab only
}

// Jailed is a running VMM in its jail.
type Jailed struct {
	*jailer.Process
	group *cgroup.Group // nil without one
}

// Start puts the VMM into its jail. The caller waits for the process and then calls Release.
func (j Jail) Start() (_ *Jailed, err error) {
	exe, err := os.Open(j.VMM)
	if err != nil {
		return nil, fmt.Errorf("open VMM: %w", err)
	}
	defer exe.Close()
	group, err := j.group()
	if err != nil {
		return nil, err
	}
	slot := fnv.New32a()
	slot.Write([]byte(j.ID))
	uid, gid := jailer.Identity(slot.Sum32())
	cfg := jailer.Config{
		Exe: exe, Args: j.Args, Env: j.env(), UID: uid, GID: gid, Files: j.Files, Stderr: os.Stderr,
		Filter: policy.BuildingProgram, FileSize: uint64(max(j.Disk, j.Memory)), Without: j.Without,
	}
	if j.Args != nil {
		cfg.Stderr = nil // a probe may crash, and reports by descriptor
	}
	if j.Bare {
		cfg.Filter = nil
	}
	if group != nil {
		cfg.Cgroup = group.Dir()
	}
	p, err := jailer.Start(cfg)
	if err != nil {
		return nil, errors.Join(err, release(group))
	}
	return &Jailed{p, group}, nil
}

// group makes the cgroup of the sandbox's name, or returns nil where there is none to be had and that is allowed.
func (j Jail) group() (*cgroup.Group, error) {
	limits := cgroup.Limits{Memory: j.Memory + vmmOverhead, Pids: vmmThreads, CPUs: float64(j.CPUs) + 1, IOWeight: vmmIOWeight}
	var fs unix.Statfs_t
	if j.Disks != "" && unix.Statfs(j.Disks, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
		limits.Memory += j.Disk // its pages are the group's
	}
	return newGroup(j.ID, limits, j.Without)
}

// newGroup makes the cgroup of that name, or returns nil where there is none to be had and without allows that.
func newGroup(name string, limits cgroup.Limits, without []jailer.Layer) (*cgroup.Group, error) {
	g, err := cgroup.Create(name, limits)
	if errors.Is(err, cgroup.ErrUnavailable) {
		if slices.Contains(without, jailer.Cgroup) {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: %w", jailer.ErrLayer, err)
	}
	return g, err
}

// groups are where the sandbox's cgroups are, its VMM's and its spore-net's: those that it has now.
func (sb *Sandbox) groups() []string {
	var there []string
	for _, name := range []string{sb.Config.ID, sb.Config.ID + netSuffix} {
		path, err := cgroup.Path(name)
		if err != nil {
			return nil // then none was made either
		}
		if _, err := os.Stat(path); err == nil {
			there = append(there, path)
		}
	}
	return there
}

// dropGroups removes the cgroups that a killed supervisor left behind. The caller holds the sandbox's lock.
func (sb *Sandbox) dropGroups() error {
	ctx, cancel := context.WithTimeout(context.Background(), cgroupLimit)
	defer cancel()
	var errs []error
	for _, path := range sb.groups() {
		errs = append(errs, cgroup.Remove(ctx, path))
	}
	return errors.Join(errs...)
}

// SweepGroups removes the cgroups below ours that no process is in, whichever store their sandboxes were of, and returns how
// many. One that is being started is not touched: it has a process, or gets EBUSY.
func SweepGroups(ctx context.Context) (int, error) {
	paths, err := cgroup.Empty("", cgroup.StartLimit)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, path := range paths {
		if unix.Rmdir(path) == nil {
			n++
		}
	}
	return n, context.Cause(ctx)
}

// Release gives back what the jail took of the host, and kills what is left in it.
func (j *Jailed) Release() error { return release(j.group) }

func release(g *cgroup.Group) error {
	if g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cgroupLimit)
	defer cancel()
	return g.Remove(ctx)
}
