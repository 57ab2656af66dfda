package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spore/internal/testenv"
	"spore/jailer/cgroup"
)

func TestGroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := fmt.Sprintf("test-%d", os.Getpid())
	g, err := cgroup.Create(name, cgroup.Limits{Memory: 64 << 20, Pids: 7, CPUs: 1.5, IOWeight: 50})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "67108864", "memory.oom.group": "1", "pids.max": "7", "cpu.max": "150000 100000"} {
		b, err := os.ReadFile(filepath.Join(g.Path(), file))
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %q, %v; want %q", file, b, err, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(g.Path(), "io.weight")); err == nil && strings.TrimSpace(string(b)) != "default 50" { // where disks are weighed
		t.Errorf("io.weight: %q", b)
	}
	// JAIL-11: a group of that name is not taken over.
	if _, err := cgroup.Create(name, cgroup.Limits{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("make it again: %v", err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Dir().Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(true); err != nil {
		t.Error(err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	if err := g.Remove(ctx); err != nil { // kills it, frozen as it is
		t.Error(err)
	}
	if err := <-reaped; err == nil {
		t.Error("the process ended well")
	}
	if _, err := os.Stat(g.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the group is still there: %v", err)
	}
	if err := cgroup.Remove(ctx, g.Path()); err != nil {
		t.Errorf("remove it again: %v", err)
	}
}

// JAIL-10: a name is one component.
func TestName(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	for _, name := range []string{"../x", "a/b", ".", "..", ""} {
		if g, err := cgroup.Create(name, cgroup.Limits{}); err == nil {
			t.Errorf("%q was made: %s", name, g.Path())
		}
	}
}
