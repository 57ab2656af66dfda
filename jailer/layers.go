package jailer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Layer is one part of the jail that some hosts do not offer, by the name that users and outcomes know it by. The other
// parts (the remaining namespaces, the empty root, capabilities, no_new_privs, limits, system-call filters) are on
// every host that can run Spore at all.
type Layer string

// Layers that may be missing.
const (
	Landlock  Layer = "landlock"        // Linux 5.13, and in the lsm= list
	Cgroup    Layer = "cgroup"          // a cgroup v2 directory that the caller may write
	TimeSpace Layer = "time-namespace"  // Linux 5.6
	MDWE      Layer = "mdwe"            // Linux 6.3; the system-call filters refuse executable memory without it too
	CoreSched Layer = "core-scheduling" // Linux 5.14 with CONFIG_SCHED_CORE, on a processor with threads
)

// ErrLayer is matched by the error of a jail that lacks a layer which it was not allowed to lack.
var ErrLayer = errors.New("the jail cannot be put up")

// remedies for layers without which there is no jail unless the user says so by name. The others depend on the age of
// the kernel, and are only reported.
var remedies = map[Layer]string{
	Landlock: "use a kernel with Landlock, and landlock in its lsm= list",
	Cgroup:   "run as root, or below a delegated cgroup (systemd-run --user --scope -p Delegate=yes)",
}

// Optional returns the layers that a user may allow to be missing.
func Optional() []Layer { return []Layer{Landlock, Cgroup} }

// offer is what this kernel has.
type offer struct {
	landlock int // version of its interface, 0 is none
	time     bool
	timeExec bool // exec(2) moves a process that shares its memory into the time namespace that it made (Linux 6.3)
	mdwe     bool
	core     bool
}

// look finds out what this kernel offers to a jail of c, and what that jail will lack.
func look(c *Config) (offer, []Layer, error) {
	var o offer
	if abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno == 0 {
		o.landlock = int(abi)
	}
	_, err := os.Lstat("/proc/self/ns/time_for_children")
	o.time = err == nil
	o.timeExec = o.time && kernelAtLeast(6, 3)
	o.mdwe = haveMDWE()
	o.core = haveCoreScheduling()
	missing, err := o.missing(c)
	return o, missing, err
}

// haveMDWE asks for the state of this process, which a kernel without it refuses.
func haveMDWE() bool {
	_, err := unix.PrctlRetInt(unix.PR_GET_MDWE, 0, 0, 0, 0)
	return err == nil
}

func kernelAtLeast(major, minor int) bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	fields := strings.FieldsFunc(unix.ByteSliceToString(name.Release[:]), func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) < 2 {
		return false
	}
	a, _ := strconv.Atoi(fields[0])
	b, _ := strconv.Atoi(fields[1])
	return a > major || a == major && b >= minor
}

// missing returns the layers that a jail of c lacks with what the kernel offers, or an error that names the one which c
// does not allow to be missing.
func (o offer) missing(c *Config) ([]Layer, error) {
	var out []Layer
	for _, l := range []struct {
		layer Layer
		there bool
	}{
		{Landlock, o.landlock > 0}, {Cgroup, c.Cgroup != nil}, {TimeSpace, o.time}, {MDWE, o.mdwe}, {CoreSched, o.core},
	} {
		if l.there {
			continue
		}
		if remedy := remedies[l.layer]; remedy != "" && !slices.Contains(c.Without, l.layer) {
			return nil, fmt.Errorf("%w: no %s: %s, or allow it to be missing with --jail-without %s", ErrLayer, l.layer, remedy, l.layer)
		}
		out = append(out, l.layer)
	}
	return out, nil
}
