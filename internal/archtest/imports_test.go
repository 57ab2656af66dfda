package archtest

import (
	"os/exec"
	"strings"
	"testing"
)

// module is the import path of the project.
const module = "spore"

// mayImport is the import table of ARCHITECTURE.md: what each of our packages may import of our packages. A
// key ending in /... covers everything below it. A package that is not covered fails the test.
var mayImport = map[string][]string{
	"cmd/spore":             {"jailer", "snapshot", "network", "network/policy", "network/api", "network/mediator", "lab", "sandbox", "sandbox/...", "rootfs", "emuhost", "emuhost/...", "doctor", "guest", "agent", "internal/..."},
	"cmd/spore-vmm":         {"jailer", "jailer/seccomp", "vmm", "vmm/...", "internal/lossy", "internal/timing"},
	"cmd/spore-probe":       {"lab/probe"},
	"cmd/spore-agent":       {"agent", "agent/..."},
	"cmd/spore-hostinit":    {"emuhost/...", "kvm"},
	"sandbox/...":           {"sandbox/...", "snapshot", "network", "network/policy", "network/api", "network/mediator", "rootfs", "jailer", "jailer/cgroup", "kvm", "vmm/api", "vmm/policy", "agent", "guest", "internal/..."},
	"jailer/...":            {"jailer/...", "internal/testenv"},
	"vmm":                   {"vmm/...", "virtio", "virtio/...", "guestmem", "kvm", "jailer/seccomp", "internal/..."},
	"vmm/api":               {"internal/wire"},
	"vmm/acpi/...":          {"guestmem"},
	"vmm/boot/...":          {"guestmem", "kvm", "vmm/acpi"},
	"vmm/control":           {"vmm/api", "internal/wire", "internal/rights"},
	"vmm/policy/...":        {"jailer/seccomp", "jailer/seccomp/export", "vmm/policy"},
	"vmm/...":               {"guestmem", "kvm", "vmm/..."},
	"virtio":                {"virtio/queue", "guestmem"},
	"virtio/queue":          {"guestmem"},
	"virtio/mmio":           {"virtio", "virtio/queue", "guestmem"},
	"virtio/virtiotest/...": {"virtio", "virtio/...", "guestmem"},
	"virtio/rate":           {},
	"virtio/...":            {"virtio", "virtio/queue", "virtio/rate", "guestmem", "virtio/block/...", "virtio/net/...", "vmm/api", "internal/rights"},
	"guestmem":              {},
	"kvm":                   {},
	"rootfs/...":            {"rootfs/...", "internal/..."},
	"snapshot/...":          {"internal/..."},
	"network":               {"internal/..."},
	"network/policy/...":    {"network/policy"},
	"network/resolver/...":  {"network/policy", "network/resolver"},
	"network/api":           {"network/policy", "internal/wire"},
	"network/mediator/...":  {"network/api", "network/policy", "network/syscalls", "jailer", "internal/..."},
	"network/proxy/...":     {"network/policy", "network/proxy", "internal/..."},
	"network/stack/...":     {"network/policy", "network/proxy", "network/stack", "network/stack/...", "internal/..."},
	"network/syscalls/...":  {"jailer/seccomp", "jailer/seccomp/export", "network/syscalls"},
	"cmd/spore-net":         {"jailer", "jailer/seccomp", "network/api", "network/policy", "network/resolver", "network/proxy", "network/stack", "network/syscalls", "internal/..."},
	"agent":                 {"internal/wire"},
	"agent/...":             {"agent", "agent/...", "internal/wire", "internal/hugepage"},
	"emuhost/...":           {"emuhost/...", "internal/..."},
	"doctor/...":            {"kvm", "guestmem", "jailer", "vmm/boot", "internal/..."},
	"guest/...":             {"guest/..."},
	"lab":                   {"lab/probe", "agent", "sandbox", "jailer", "jailer/seccomp", "vmm/policy", "internal/..."},
	"lab/probe":             {"jailer", "jailer/seccomp", "vmm/policy"},
	"bench/...":             {"network", "network/api", "network/mediator", "network/policy", "sandbox", "sandbox/...", "snapshot", "agent", "vmm/api", "vmm/policy", "jailer", "jailer/cgroup", "guest", "rootfs", "internal/...", "bench/..."},
	"test/...":              {"test/...", "sandbox", "sandbox/...", "agent", "vmm/api", "jailer", "guest", "guest/...", "internal/..."},
	"internal/...":          {"internal/..."},
}

// mustNotLink names what the closure of a binary may never contain, each with its reason.
var mustNotLink = []struct{ binary, path, why string }{
	{"cmd/spore-vmm", "net", "the jailed process makes no socket; start time, memory and system calls"},
	{"cmd/spore-vmm", "net/http", "no HTTP parser beside guest memory"},
	{"cmd/spore-vmm", "os/exec", "the jailed process starts no program"},
	{"cmd/spore-vmm", "github.com/urfave/cli/v2", "no command line in the jail"},
	{"cmd/spore-agent", "net", "PID 1 stays small: it has the kernel's sockets, and every boot waits for what a package sets up"},
	{"cmd/spore-agent", "crypto/rand", "likewise: the kernel's random numbers do"},
	{"cmd/spore-agent", "spore/vmm", "the guest holds no host code"},
	{"cmd/spore-agent", "spore/jailer", "the guest holds no host code"},
	{"cmd/spore-net", "os/exec", "the jailed process starts no program"},
	{"cmd/spore-net", "github.com/urfave/cli/v2", "no command line in the jail"},
	{"cmd/spore-net", "spore/vmm", "no device code beside the guest's packets"},
	{"cmd/spore-vmm", "gvisor.dev/gvisor/pkg/tcpip", "only spore-net has a TCP/IP stack"},
	{"cmd/spore", "gvisor.dev/gvisor/pkg/tcpip", "only spore-net has a TCP/IP stack"},
	{"cmd/spore", "spore/vmm", "the supervisor holds no device code"},
	{"cmd/spore", "spore/virtio/queue", "the supervisor holds no device code"},
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = root
	var said strings.Builder // what is downloaded is told there too
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, said.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// match reports whether pattern covers pkg, and how specific it is.
func match(pattern, pkg string) (bool, int) {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == prefix || strings.HasPrefix(pkg, prefix+"/"), len(prefix)
	}
	return pattern == pkg, len(pattern) + 1000
}

// allowed returns the row of the table that governs pkg: the most specific one.
func allowed(pkg string) (row []string, ok bool) {
	best := -1
	for pattern, r := range mayImport {
		if hit, n := match(pattern, pkg); hit && n > best {
			best, row, ok = n, r, true
		}
	}
	return row, ok
}

func TestImportsPointOneWay(t *testing.T) {
	for _, line := range list(t, "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...") {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module+"/")
		row, ok := allowed(pkg)
		if !ok {
			t.Errorf("package %s is not in the import table", pkg)
			continue
		}
		for _, imp := range fields[1:] {
			dep, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			fine := false
			for _, pattern := range row {
				hit, _ := match(pattern, dep)
				fine = fine || hit
			}
			if !fine {
				t.Errorf("%s imports %s, which the import table does not allow", pkg, dep)
			}
		}
	}
}

func TestBinariesStaySmall(t *testing.T) {
	closures := map[string]map[string]bool{}
	for _, rule := range mustNotLink {
		if closures[rule.binary] == nil {
			deps := map[string]bool{}
			for _, dep := range list(t, "-deps", "./"+rule.binary) {
				deps[dep] = true
			}
			closures[rule.binary] = deps
		}
		if closures[rule.binary][rule.path] {
			t.Errorf("%s links %s: %s", rule.binary, rule.path, rule.why)
		}
	}
}
