package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostProbe is one question about the host kernel. ask returns what was seen, or why it is missing.
type hostProbe struct {
	name   string
	needed bool
	why    string
	remedy string
	ask    func() (string, error)
}

var hostProbes = []hostProbe{
	{"namespaces", true, "the VMM is born into namespaces of its own, with one mapped user", "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns", askNamespaces},
	{"seccomp", true, "the VMM is killed for a system call it has no use for", "use a kernel with CONFIG_SECCOMP_FILTER", askSeccomp},
	{"landlock", false, "one more layer that denies the VMM every file", "use a kernel 5.13 or newer with landlock in the lsm= list", askLandlock},
	{"cgroup v2", false, "limits on what the VMM may use of the host", "boot with systemd.unified_cgroup_hierarchy=1", askCgroup2},
	{"quick VM creation", false, "a new VM does not wait for the kernel's read-copy-update (KVM moves a thread of its own between cgroups)", "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or newer)", askFavorDynMods},
	{"tun", false, "networks for sandboxes", "load the module tun", askTun},
	{"memory", true, "a guest of the default size fits", "free some memory, or give --memory less", askMemory},
}

func examineHost() []Finding {
	var all []Finding
	for _, p := range hostProbes {
		seen, err := p.ask()
		f := Finding{Name: p.name, OK: err == nil, Needed: p.needed, Detail: seen, Why: p.why}
		if err != nil {
			f.Detail, f.Remedy = err.Error(), p.remedy
		}
		all = append(all, f)
	}
	return all
}

// askNamespaces starts a program in all of them.
func askNamespaces() (string, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helloVariable + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return "", err
	}
	return "user, mount, pid, net, ipc, uts, cgroup", nil
}

// helloVariable makes this very program exit at once: see Hello.
const helloVariable = "SPORE_DOCTOR_HELLO"

// Hello ends the process if it was started only to see that it can be. Call it first thing in main.
func Hello() {
	if os.Getenv(helloVariable) != "" {
		os.Exit(0)
	}
}

// askSeccomp asks for the default action; the question needs no privilege and installs nothing.
func askSeccomp() (string, error) {
	return askSeccompAction(0x80000000) // SECCOMP_RET_KILL_PROCESS
}

func askLandlock() (string, error) {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	if errno != 0 {
		return "", os.NewSyscallError("landlock_create_ruleset", errno)
	}
	return fmt.Sprintf("ABI %d", abi), nil
}

func askCgroup2() (string, error) {
	have, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return "", errors.New("no unified hierarchy at /sys/fs/cgroup")
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+c+" ") {
			return "", fmt.Errorf("no %s controller", c)
		}
	}
	return strings.TrimSpace(string(have)), nil
}

// askFavorDynMods looks at how the unified hierarchy is mounted.
func askFavorDynMods() (string, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup2" {
			if strings.Contains(f[3], "favordynmods") {
				return f[1] + " is mounted with favordynmods", nil
			}
			return "", fmt.Errorf("%s is mounted without favordynmods", f[1])
		}
	}
	return "", errors.New("no unified hierarchy is mounted")
}

func askTun() (string, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	return "", f.Close()
}

// leastMemory is what the default guest may come to use, in bytes.
const leastMemory = 640 << 20

func askMemory() (string, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemAvailable:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return "", err
		}
		seen := fmt.Sprintf("%d MiB available", kib>>10)
		if kib<<10 < leastMemory {
			return "", errors.New(seen)
		}
		return seen, nil
	}
	return "", errors.New("no MemAvailable in /proc/meminfo")
}
