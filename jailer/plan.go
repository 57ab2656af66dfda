package jailer

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"
)

// step is one system call that the child makes between its birth and the program. All is prepared before the clone:
// the child has one thread and no stack, and does nothing else.
type step struct {
	nr   uintptr
	args [6]uintptr
	one  bool // must return 1; others may return anything but an error

	report uintptr // the descriptor for failures from then on; 0 if it stays
}

// call is a step, and what there is to say of it.
type call struct {
	name string // for the error of a jail that could not be put up
	why  string // what the call takes away; empty for those that only lead to the next
	step
}

// plan is the list of calls. What the child reads and writes is in memory of the plan's own, so that it needs nothing of the heap.
type plan struct {
	calls   []call
	failure *failure

	memory []byte // a mapping
	used   int    // of it, in bytes
}

func (p *plan) add(name, why string, nr uintptr, args ...uintptr) {
	c := call{name: name, why: why, step: step{nr: nr}}
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
}

// Descriptors that close when the program runs, above all that it has.
const (
	ExecFile    = 1000 // its binary; the filter knows it by that number
	failureFile = 1001
)

// descriptors that the child has while it carries out its plan, beside those of the program.
type descriptors struct {
	sync, syncIn int // the pipe that it waits at
	failure, exe int // both above the program's descriptors and two more
}

// fill lists what turns a fresh child into a jailed program. sources are the descriptors that become 0, 1, 2, …, and
// all are above failureFile, so that moving one cannot overwrite another. The order is the point.
func (p *plan) fill(c *Config, o offer, sources []int, d descriptors) error {
	// Or the child would hold its own end open and wait for ever for a parent that is no more.
	p.add("identity", "", unix.SYS_CLOSE, uintptr(d.syncIn))
	// The parent writes the identity map of the user namespace and then one byte; should it die, there is none to read.
	p.add("identity", "", unix.SYS_READ, uintptr(d.sync), p.buffer(1), 1)
	p.calls[len(p.calls)-1].one = true
	p.limits(c)
	p.add("setsid", "no controlling terminal to push input into", unix.SYS_SETSID)
	// Without these the process would be the overflow uid, without the capabilities that the next calls need.
	if dropsGroups() {
		p.add("setgroups", "no file of the supervisor's groups", unix.SYS_SETGROUPS, 0, 0)
	}
	p.add("setresgid", "", unix.SYS_SETRESGID, 0, 0, 0)
	p.add("setresuid", "", unix.SYS_SETRESUID, 0, 0, 0)
	n := len(sources)
	for to, from := range sources {
		p.add("descriptors", "", unix.SYS_DUP3, uintptr(from), uintptr(to), 0)
	}
	p.add("descriptors", "", unix.SYS_DUP3, uintptr(d.exe), ExecFile, unix.O_CLOEXEC)
	p.add("descriptors", "", unix.SYS_DUP3, uintptr(d.failure), failureFile, unix.O_CLOEXEC)
	p.calls[len(p.calls)-1].report = failureFile
	const leak = "a descriptor that leaked from the supervisor may lead out of the jail (CVE-2024-21626)"
	p.add("close_range", leak, unix.SYS_CLOSE_RANGE, uintptr(n), ExecFile-1, 0)
	p.add("close_range", leak, unix.SYS_CLOSE_RANGE, failureFile+1, uintptr(^uint32(0)), 0)
	if o.timeExec {
		p.add("time namespace", "clocks of its own", unix.SYS_UNSHARE, unix.CLONE_NEWTIME)
	}
	p.emptyRoot()
	if o.core {
		p.add("core scheduling", "no other sandbox on the sibling of its processor (side channels)", unix.SYS_PRCTL,
			unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, unix.PR_SCHED_CORE_SCOPE_THREAD_GROUP, 0)
	}
	if o.landlock > 0 {
		p.landlock(o.landlock, n, ExecFile, c.Network)
	}
	if err := p.dropCapabilities(); err != nil {
		return err
	}
	// Blocked around the clone; the handlers, which were ours, are gone since then (CLONE_CLEAR_SIGHAND).
	p.add("signal mask", "", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.buffer(8), 0, 8)
	p.add("no_new_privs", "no program run later can gain what was dropped", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	if c.Filter != nil {
		filter, err := p.filter(c.Filter)
		if err != nil {
			return err
		}
		p.add("seccomp", "no call that building a VM does not need, from the first instruction on", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, filter)
	}
	// By descriptor: the mapped uid need not be able to reach the path, it cannot be swapped in between, and being
	// close-on-exec the process never holds its own binary (CVE-2019-5736).
	p.add("execveat", "", unix.SYS_EXECVEAT, ExecFile, p.text(""), p.vector(append([]string{cmp.Or(c.Name, "spore-vmm")}, c.Args...)), p.vector(c.Env), unix.AT_EMPTY_PATH)
	return nil
}

// mountPoint is where the new root is mounted for the moment before it becomes /. Any directory that every
// Linux has will do; it is only covered in this namespace.
const mountPoint = "/proc"

func (p *plan) emptyRoot() {
	const (
		root  = "an empty, read-only root: no path leads to a host file, not even to our own binary"
		flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	)
	slash, dot, kind, at := p.text("/"), p.text("."), p.text("tmpfs"), p.text(mountPoint)
	p.add("private mounts", "nothing mounted here may show up outside, or the other way round",
		unix.SYS_MOUNT, 0, slash, 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	p.add("mount root", root, unix.SYS_MOUNT, kind, at, kind, flags, p.text("size=4k,nr_inodes=1,mode=0555"))
	p.add("enter root", "", unix.SYS_CHDIR, at)
	// pivot_root(".", ".") stacks the old root on the new one, where it can be detached without a directory
	// to hold it. See pivot_root(2).
	p.add("pivot_root", root, unix.SYS_PIVOT_ROOT, dot, dot)
	p.add("detach old root", root, unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.add("enter root", "", unix.SYS_CHDIR, slash)
	p.add("read-only root", root, unix.SYS_MOUNT, 0, slash, 0, unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, 0)
}

// descriptorLimit is RLIMIT_NOFILE of a jail that does not say otherwise.
const descriptorLimit = 1024

// rlimits of the jailed process. RLIMIT_AS is absent: the Go runtime reserves more than a gigabyte of
// addresses, and guest memory is bounded by the configuration.
var rlimits = []struct {
	resource int
	value    uint64
	why      string
}{
	{unix.RLIMIT_CORE, 0, "guest memory never reaches the host's disk"},
	{unix.RLIMIT_MSGQUEUE, 0, "no POSIX message queue is used"},
	{unix.RLIMIT_MEMLOCK, 0, "nothing is locked into memory"},
	{unix.RLIMIT_NPROC, 512, "vCPUs, disk workers and the runtime's threads; no fork bomb"},
}

func (p *plan) limits(c *Config) {
	for _, l := range rlimits {
		p.add(fmt.Sprintf("rlimit %d", l.resource), l.why, unix.SYS_PRLIMIT64, 0, uintptr(l.resource), p.rlimit(l.value), 0)
	}
	p.add(fmt.Sprintf("rlimit %d", unix.RLIMIT_NOFILE), "one descriptor per connection and event, and no more", unix.SYS_PRLIMIT64, 0,
		unix.RLIMIT_NOFILE, p.rlimit(cmp.Or(c.Descriptors, descriptorLimit)), 0)
	p.add(fmt.Sprintf("rlimit %d", unix.RLIMIT_FSIZE), "no disk grows beyond what it was given", unix.SYS_PRLIMIT64, 0,
		unix.RLIMIT_FSIZE, p.rlimit(c.FileSize), 0)
}

// securebits: no capability comes back by being or becoming uid 0, and that cannot be undone.
// SECBIT_NOROOT, _NO_SETUID_FIXUP, _NO_CAP_AMBIENT_RAISE and their locks (linux/securebits.h).
const securebits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<6 | 1<<7

// dropCapabilities empties all five sets and locks them.
func (p *plan) dropCapabilities() error {
	const why = "all five sets empty and locked: root inside the user namespace is nobody here too"
	p.add("ambient capabilities", why, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	n, err := knownCapabilities()
	if err != nil {
		return err
	}
	for c := range n {
		p.add(fmt.Sprintf("bounding set, capability %d", c), why, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c))
	}
	p.add("securebits", why, unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, securebits)
	header, none := p.capabilities()
	p.add("capabilities", why, unix.SYS_CAPSET, header, none)
	return nil
}

// knownCapabilities is how many the kernel knows: it refuses the first beyond them, and nothing else of these calls (capabilities(7)).
func knownCapabilities() (int, error) {
	const most = 64 // that the sets have room for
	for c := range most {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == unix.EINVAL && c > 0 {
			return c, nil
		} else if err != nil {
			return 0, fmt.Errorf("read bounding set, capability %d: %w", c, err)
		}
	}
	return most, nil
}
