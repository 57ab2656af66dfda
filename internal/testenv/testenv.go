// Package testenv probes for what a test needs. A need that is missing skips the test with the probe's own
// words; when the environment variable REQUIRE lists the need by name (comma-separated), it fails instead,
// so that CI cannot pass by skipping.
package testenv

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Need is one thing of the machine that tests ask for by name.
type Need struct {
	Name  string       // as in REQUIRE
	Probe func() error // nil when it is there; the error says what is missing
}

// The needs that several packages share.
var (
	KVM       = Need{"kvm", probeKVM}
	Root      = Need{"root", probeRoot}
	Cgroup2   = Need{"cgroup2", probeCgroup2}
	HugePages = Need{"hugepages", probeHugePages}
)

// Require skips or fails t unless every need is met.
func Require(t testing.TB, needs ...Need) {
	t.Helper()
	for _, n := range needs {
		err := n.Probe()
		if err == nil {
			continue
		}
		if required(n.Name) {
			t.Fatalf("REQUIRE=%s, but: %v", n.Name, err)
		}
		fmt.Fprintf(os.Stderr, "SKIPPED %s: needs %s: %v\n", t.Name(), n.Name, err)
		t.Skipf("needs %s: %v", n.Name, err)
	}
}

func required(name string) bool {
	for _, r := range strings.Split(os.Getenv("REQUIRE"), ",") {
		if strings.TrimSpace(r) == name {
			return true
		}
	}
	return false
}

// probeKVM makes a VM: the device node alone proves nothing.
func probeKVM() error {
	const createVM = 0xae01 // KVM_CREATE_VM
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/kvm: %w", err)
	}
	defer unix.Close(fd)
	vm, err := unix.IoctlRetInt(fd, createVM)
	if err != nil {
		return fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	return unix.Close(vm)
}

func probeRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("uid is %d, not 0", uid)
	}
	return nil
}

// probeHugePages wants a kernel that has transparent ones, whatever they are set to.
func probeHugePages() error {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		return fmt.Errorf("a kernel without transparent huge pages: %w", err)
	}
	return nil
}

// probeCgroup2 wants a unified hierarchy with the memory and pids controllers.
func probeCgroup2() error {
	have, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("no unified cgroup hierarchy: %w", err)
	}
	for _, c := range []string{"memory", "pids"} {
		if !strings.Contains(" "+string(have)+" ", c) {
			return fmt.Errorf("cgroup v2 lacks the %s controller", c)
		}
	}
	return nil
}
