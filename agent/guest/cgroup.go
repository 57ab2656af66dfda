package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// workloads is the cgroup above all requests; the agent itself stays in the root cgroup, outside its limits.
const workloads = "/sys/fs/cgroup/spore"

// reserve is the memory that workloads may not have, in bytes: the agent's, and room for the kernel to act in
// when they have used up theirs.
const reserve = 8 << 20

// makeCgroup makes the cgroup above all that will run. The agent's own mount of the hierarchy stays behind when
// the root is switched; the guest's programs get another.
func makeCgroup() error {
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	const controllers = "+memory +pids +cpu"
	if err := writeFile("/sys/fs/cgroup/cgroup.subtree_control", controllers); err != nil {
		return err
	}
	if err := os.Mkdir(workloads, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return writeFile(workloads+"/cgroup.subtree_control", controllers)
}

// setCgroup puts limits over everything that will run.
func setCgroup(s agent.Setup) error {
	available, _ := meminfo()
	if limit := available - reserve; limit > 0 {
		if err := writeFile(workloads+"/memory.max", strconv.FormatInt(limit, 10)); err != nil {
			return err
		}
	}
	if s.Pids > 0 {
		return writeFile(workloads+"/pids.max", strconv.Itoa(s.Pids))
	}
	return nil
}

func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// groups are the cgroups of all requests. The zero value has none: processes run where we do.
type groups struct {
	root string // directory above them all

	mu   sync.Mutex
	left []string // paths of those that processes outlived
}

// cgroup is the leaf of one request.
type cgroup struct {
	root string
	path string
	dir  *os.File // for CLONE_INTO_CGROUP; nil without cgroups
	pids uint64   // refused forks in all workloads before this one
}

// add makes a cgroup. In that of a sandbox's command memory running out ends all of it: it is one thing.
func (g *groups) add(name string, main bool) (*cgroup, error) {
	if g.root == "" {
		return &cgroup{}, nil
	}
	g.sweep("")
	c := &cgroup{root: g.root, path: filepath.Join(g.root, name), pids: keyed(g.root+"/pids.events", "max")}
	if err := os.Mkdir(c.path, 0o755); err != nil {
		return nil, err
	}
	var err error
	if main {
		err = writeFile(c.path+"/memory.oom.group", "1")
	}
	if err == nil {
		c.dir, err = os.Open(c.path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(c.path))
	}
	return c, nil
}

// drop deletes a cgroup, or remembers to, when processes that were left running are still in it.
func (g *groups) drop(c *cgroup) {
	if c.dir != nil {
		c.dir.Close()
		g.sweep(c.path)
	}
}

// sweep deletes every cgroup, of those left and the one at path, whose last process is gone.
func (g *groups) sweep(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if path != "" {
		g.left = append(g.left, path)
	}
	g.left = slices.DeleteFunc(g.left, func(p string) bool { return unix.Rmdir(p) != unix.EBUSY })
}

// kill ends every process in the cgroup.
func (c *cgroup) kill() {
	if c.dir != nil {
		_ = writeFile(c.path+"/cgroup.kill", "1")
	}
}

// refusals returns how often a fork was refused. Linux counts them where the process was, and since 6.11 where
// the limit is.
func (c *cgroup) refusals() uint64 {
	n := c.event("pids.events", "max")
	if all := keyed(c.root+"/pids.events", "max"); all > c.pids {
		n += all - c.pids
	}
	return n
}

// event reads one counter of a flat-keyed file such as memory.events.
func (c *cgroup) event(file, key string) uint64 { return keyed(filepath.Join(c.path, file), key) }

func keyed(path, key string) uint64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name == key {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

func number(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// meminfo returns available and total memory in bytes.
func meminfo() (available, total int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	return available, total
}

// diskRoom returns the size and the free space of the root file system in bytes.
func diskRoom() (total, free int64) {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return 0, 0
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize
}

// fullBelow is how little free space counts as none, in bytes.
const fullBelow = 64 << 10

// diskFull reports whether a place that programs write to has no room, for bytes or for files.
func diskFull() bool {
	for _, at := range []string{"/", "/tmp", "/var/tmp"} {
		var st unix.Statfs_t
		if unix.Statfs(at, &st) != nil || st.Flags&unix.ST_RDONLY != 0 || st.Blocks == 0 {
			continue
		}
		if int64(st.Bavail)*st.Bsize < fullBelow || st.Files > 0 && st.Ffree == 0 {
			return true
		}
	}
	return false
}

func stats() agent.Stats {
	s := agent.Stats{Uptime: uptime(), CPU: time.Duration(keyed(workloads+"/cpu.stat", "usage_usec")) * time.Microsecond}
	s.MemoryAvailable, s.MemoryTotal = meminfo()
	s.MemoryUsed, s.Pids = number(workloads+"/memory.current"), number(workloads+"/pids.current")
	s.DiskTotal, s.DiskFree = diskRoom()
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		s.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return s
}
