// Package lab looks at the jail from both sides: attest puts a probe into the VMM's place and lets it try to get out,
// posture reads from /proc what a running VMM is held by.
package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Fact is one property of a jailed process: what the jail claims, and what /proc shows.
type Fact struct {
	Claim    string `json:"claim"`
	Source   string `json:"source"` // where in /proc
	Expected string `json:"expected"`
	Observed string `json:"observed"`
}

// OK says whether the fact is as the jail claims.
func (f Fact) OK() bool { return f.Expected == f.Observed }

// namespaces that a VMM has of its own.
var namespaces = []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"}

// Posture reads the facts of a process. The caller may look at it: root, or the user that started it. lacks names
// namespaces that this host does not offer.
func Posture(pid int, lacks ...string) ([]Fact, error) {
	p := &posture{dir: fmt.Sprintf("/proc/%d", pid)}
	for _, ns := range namespaces {
		if slices.Contains(lacks, ns) {
			continue
		}
		p.add(ns+" namespace of its own", "ns/"+ns, "own", p.namespace(ns))
	}
	status := p.status("status")
	p.add("one identity, not root's", "status Uid", "one, not 0", identity(status["Uid"]))
	p.add("one group, not root's", "status Gid", "one, not 0", identity(status["Gid"]))
	p.add("no supplementary groups", "status Groups", "", status["Groups"])
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		p.add("no capabilities", "status "+set, "0000000000000000", status[set])
	}
	p.add("no new privileges", "status NoNewPrivs", "1", status["NoNewPrivs"])
	p.add("identity map of one id", "uid_map", "1", p.mapped("uid_map"))
	p.add("filters on every thread", "task/*/status Seccomp", "2", p.threads("Seccomp"))
	p.add("an empty root", "root", "0 entries", p.entries("root"))
	p.add("one mount, read-only", "mountinfo", "1 tmpfs ro,nosuid,nodev,noexec", p.mounts())
	p.add("working directory is the root", "cwd", "/", p.link("cwd"))
	for _, l := range []struct{ name, want string }{
		{"Max core file size", "0"}, {"Max open files", "1024"}, {"Max locked memory", "0"}, {"Max processes", "512"}, {"Max msgqueue size", "0"},
	} {
		p.add("limit: "+strings.ToLower(l.name), "limits", l.want, p.limit(l.name))
	}
	p.add("no directory among its descriptors", "fd", "0", p.directories())
	p.add("/dev/kvm is closed", "fd", "closed", p.device("/dev/kvm"))
	p.add("no vhost (HOST-02)", "fd", "closed", p.device("/dev/vhost"))
	return p.facts, p.err
}

type posture struct {
	dir   string
	facts []Fact
	err   error // the first
}

func (p *posture) add(claim, source, expected, observed string) {
	p.facts = append(p.facts, Fact{Claim: claim, Source: source, Expected: expected, Observed: observed})
}

func (p *posture) fail(err error) string {
	p.err = errors.Join(p.err, err)
	return "unknown"
}

func (p *posture) namespace(ns string) string {
	theirs, err := os.Readlink(p.dir + "/ns/" + ns)
	if err != nil {
		return p.fail(err)
	}
	ours, err := os.Readlink("/proc/self/ns/" + ns)
	if err != nil {
		return p.fail(err)
	}
	if theirs == ours {
		return "shared"
	}
	return "own"
}

// status is a status file of the process as a map.
func (p *posture) status(file string) map[string]string {
	b, err := os.ReadFile(filepath.Join(p.dir, file))
	if err != nil {
		p.fail(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			m[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	return m
}

// identity judges the four ids of a status line.
func identity(ids string) string {
	f := strings.Fields(ids)
	if len(f) == 4 && f[0] != "0" && f[0] == f[1] && f[1] == f[2] && f[2] == f[3] {
		return "one, not 0"
	}
	return ids
}

func (p *posture) mapped(file string) string {
	b, err := os.ReadFile(filepath.Join(p.dir, file))
	if err != nil {
		return p.fail(err)
	}
	if f := strings.Fields(string(b)); len(f) == 3 {
		return f[2]
	}
	return strings.TrimSpace(string(b))
}

// threads is a status value that all threads have, or all the different ones.
func (p *posture) threads(key string) string {
	tasks, err := filepath.Glob(p.dir + "/task/*/status")
	if err != nil || len(tasks) == 0 {
		return p.fail(fmt.Errorf("threads of %s: %w", p.dir, errors.Join(err, fs.ErrNotExist)))
	}
	var all []string
	for _, t := range tasks {
		if v := p.status(strings.TrimPrefix(t, p.dir+"/"))[key]; !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return strings.Join(all, " ")
}

func (p *posture) entries(dir string) string {
	e, err := os.ReadDir(filepath.Join(p.dir, dir) + "/.")
	if err != nil {
		return p.fail(err)
	}
	return fmt.Sprintf("%d entries", len(e))
}

func (p *posture) link(name string) string {
	l, err := os.Readlink(filepath.Join(p.dir, name))
	if err != nil {
		return p.fail(err)
	}
	return l
}

func (p *posture) mounts() string {
	b, err := os.ReadFile(p.dir + "/mountinfo")
	if err != nil {
		return p.fail(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	f := strings.Fields(lines[0])
	if len(f) < 9 {
		return lines[0]
	}
	var flags []string
	for _, want := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if slices.Contains(strings.Split(f[5], ","), want) {
			flags = append(flags, want)
		}
	}
	kind := f[slices.Index(f, "-")+1]
	return fmt.Sprintf("%d %s %s", len(lines), kind, strings.Join(flags, ","))
}

// limit is the hard limit of that name.
func (p *posture) limit(name string) string {
	b, err := os.ReadFile(p.dir + "/limits")
	if err != nil {
		return p.fail(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) >= 2 {
				return f[1]
			}
		}
	}
	return "unknown"
}

// descriptors calls f with the target of each.
func (p *posture) descriptors(f func(path, target string)) error {
	all, err := os.ReadDir(p.dir + "/fd")
	if err != nil {
		return err
	}
	for _, e := range all {
		path := filepath.Join(p.dir, "fd", e.Name())
		target, err := os.Readlink(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return err
		}
		f(path, target)
	}
	return nil
}

func (p *posture) directories() string {
	n := 0
	err := p.descriptors(func(path, target string) {
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			n++
		}
	})
	if err != nil {
		return p.fail(err)
	}
	return strconv.Itoa(n)
}

// device says whether one whose name begins like that is open.
func (p *posture) device(name string) string {
	state := "closed"
	err := p.descriptors(func(_, target string) {
		if strings.HasPrefix(target, name) {
			state = "open"
		}
	})
	if err != nil {
		return p.fail(err)
	}
	return state
}
