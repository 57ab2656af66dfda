package guest

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// workloads is the cgroup above all requests; the agent itself stays in the root cgroup, outside its limits.
const workloads = "/sys/fs/cgroup/spore"

// reserve is the memory that workloads may not have, in bytes: the agent's, and room for the kernel to act in
// when they have used up theirs.
const reserve = 8 << 20

// setCgroup puts limits over everything that will run.
func setCgroup(s agent.Setup) error {
	const controllers = "+memory +pids +cpu"
	if err := writeFile("/sys/fs/cgroup/cgroup.subtree_control", controllers); err != nil {
		return err
	}
	if err := os.Mkdir(workloads, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := writeFile(workloads+"/cgroup.subtree_control", controllers); err != nil {
		return err
	}
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

// cgroup is the leaf of one request.
type cgroup struct {
	path string
	dir  *os.File // for CLONE_INTO_CGROUP
}

func newCgroup(name string, main bool) (*cgroup, error) {
	g := &cgroup{path: filepath.Join(workloads, name)}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, err
	}
	var err error
	if main {
		// The command is one thing: when memory runs out it ends as a whole.
		err = writeFile(g.path+"/memory.oom.group", "1")
	}
	if err == nil {
		g.dir, err = os.Open(g.path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(g.path))
	}
	return g, nil
}

// kill ends every process in the cgroup.
func (g *cgroup) kill() { _ = writeFile(g.path+"/cgroup.kill", "1") }

// remove deletes the cgroup once its last process is gone; until then, for a bounded time, it tries again.
func (g *cgroup) remove() {
	g.dir.Close()
	for range 100 {
		if err := unix.Rmdir(g.path); err != unix.EBUSY {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// event reads one counter of a flat-keyed file such as memory.events.
func (g *cgroup) event(file, key string) uint64 { return keyed(filepath.Join(g.path, file), key) }

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

func diskFull() bool {
	total, free := diskRoom()
	return total > 0 && free < fullBelow
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
