package emuhost

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

// machineTimeout is for a first boot on a slow machine that does other things.
const machineTimeout = 10 * time.Minute

var needEmulatedHost = testenv.Need{Name: "emuhost", Probe: func() error {
	for program, pkg := range map[string]string{
		qemuProgram: qemuPackage, "apt-get": "apt", "dpkg-deb": "dpkg", "depmod": "kmod", "xz": "xz-utils",
	} {
		if _, err := exec.LookPath(program); err != nil {
			return missingProgram(program, pkg)
		}
	}
	if _, err := os.UserHomeDir(); err != nil {
		return err
	}
	return nil
}}

// startMachine starts an emulated host of the test's own. Kernel and snapshot
// come from the user's cache.
func startMachine(t *testing.T) *Host {
	t.Helper()
	testenv.Require(t, needEmulatedHost)
	init := filepath.Join(t.TempDir(), "spore-hostinit")
	// The flags of the Makefile, so that both builds share a snapshot.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", init, "spore/cmd/spore-hostinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v: %s", err, out)
	}
	h, err := Open(Config{StateDir: t.TempDir(), InitBinary: init, Progress: func(step string) { t.Log(step) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), machineTimeout)
	defer cancel()
	if err := h.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestMachine(t *testing.T) {
	h := startMachine(t)
	st, err := h.Status(t.Context())
	if err != nil || !st.Running || st.Started != Resumed || st.PID == 0 {
		t.Errorf("status %+v, %v", st, err)
	}
	t.Logf("started in %.2f s", st.StartSeconds)
	if err := h.Start(t.Context()); err != nil {
		t.Errorf("second start: %v", err)
	}
	if again, err := h.Status(t.Context()); err != nil || again.PID != st.PID {
		t.Errorf("second start: %+v, %v", again, err)
	}
	t.Run("environment", func(t *testing.T) { testEnvironment(t, h) })
	t.Run("clock", func(t *testing.T) { testClock(t, h) })
	t.Run("files", func(t *testing.T) { testFiles(t, h) })
	testCommands(t, h)
	t.Run("lost", func(t *testing.T) { testMachineLost(t, h, st.PID) })
}

// testEnvironment checks what Spore needs of the machine.
func testEnvironment(t *testing.T, h *Host) {
	for name, script := range map[string]string{
		"kvm":          `test -c /dev/kvm && exec 3<>/dev/kvm`,
		"nested pages": `grep -q Y /sys/module/kvm_amd/parameters/npt`,
		"clock source": `grep -qx tsc /sys/devices/system/clocksource/clocksource0/current_clocksource`,
		"cgroups":      `cd /sys/fs/cgroup && for c in cpu memory pids io cpuset; do grep -qw $c cgroup.subtree_control || exit; done`,
		"loopback":     `grep -q 'lo:' /proc/net/dev && ip addr show lo | grep -q UP`,
		"writable":     `touch /etc/x /usr/x /var/x /tmp/x /run/x /dev/shm/x`,
		"modprobe":     `modprobe dummy && grep -q ^dummy /proc/modules`,
		"nftables":     `grep -q ^nf_tables /proc/modules`,
		"no failures":  `! dmesg | grep -i 'unknown symbol'`,
		"entropy":      `test $(head -c 32 /dev/random | wc -c) = 32`,
		"host name":    `test $(uname -n) = spore-host`,
		"processors":   `test $(nproc) = $(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)`,
	} {
		t.Run(name, func(t *testing.T) {
			if got := sh(t, h, script, ""); got.code != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// testClock expects the resumed machine to know the time: its snapshot is
// older than the test.
func testClock(t *testing.T, h *Host) {
	before := time.Now().Add(-5 * time.Second)
	got := sh(t, h, "date +%s.%N", "")
	seconds, err := time.ParseDuration(strings.TrimSpace(got.stdout) + "s")
	at := time.Unix(0, int64(seconds))
	if err != nil || at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
		t.Errorf("inside it is %v (%v)", at, err)
	}
}

// testFiles checks what of the outer machine is seen inside, and when.
func testFiles(t *testing.T, h *Host) {
	dir, err := os.MkdirTemp(h.cfg.CacheDir, "test-") // not below /tmp, which is hidden
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "file")
	read := func(want string) {
		t.Helper()
		if got := sh(t, h, "cat "+path, ""); got.stdout != want {
			t.Errorf("read %+v, want %q", got, want)
		}
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "first")
	read("first")
	write(path, "second, in place")
	read("second, in place")
	write(path+".new", "third, renamed")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	read("third, renamed")
	for _, program := range []string{"/bin/true", "/bin/false"} { // executed, then replaced
		b, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		write(path+".new", string(b))
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		if got := sh(t, h, path, ""); (got.code == 0) != (program == "/bin/true") {
			t.Errorf("program %s: %+v", program, got)
		}
	}
	if got := sh(t, h, "echo inside > "+path+"; cat "+path, ""); got.stdout != "inside\n" {
		t.Errorf("written inside: %+v", got)
	}
	if b, _ := os.ReadFile(path); bytes.Equal(b, []byte("inside\n")) {
		t.Error("a write inside reached the outer machine")
	}
	testShared(t, h)
	testRevealed(t, h)
}

// testShared checks that the shared directory is one on both sides.
func testShared(t *testing.T, h *Host) {
	path := filepath.Join(h.SharedDir(), "result")
	if got := sh(t, h, "echo from inside > "+path, ""); got.code != 0 {
		t.Fatalf("write shared file: %+v", got)
	}
	if b, err := os.ReadFile(path); string(b) != "from inside\n" {
		t.Errorf("shared file outside: %q, %v", b, err)
	}
	if err := os.WriteFile(path, []byte("from outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, h, "cat "+path, ""); got.stdout != "from outside" {
		t.Errorf("shared file inside: %+v", got)
	}
}

// testRevealed names what lies below /tmp outside: as the directory, the program, an argument and in the environment.
func testRevealed(t *testing.T, h *Host) {
	for name, command := range map[string]func(program string) Command{
		"directory": func(p string) Command { return Command{Args: []string{"./program"}, Dir: filepath.Dir(p)} },
		"program":   func(p string) Command { return Command{Args: []string{p}, Dir: "/"} },
		"argument":  func(p string) Command { return Command{Args: []string{"env", p}, Dir: "/"} },
		"environment": func(p string) Command {
			return Command{Args: []string{"sh", "-c", "$P"}, Env: []string{"P=" + p, "PATH=/usr/bin:/bin"}, Dir: "/"}
		},
	} {
		dir, err := os.MkdirTemp("/tmp", "emuhost-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		program := filepath.Join(dir, "program")
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho here\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		c := command(program)
		c.Stdout = &out
		if code, err := h.Run(t.Context(), c); code != 0 || err != nil || out.String() != "here\n" {
			t.Errorf("%s: code %d, %v, %q", name, code, err, out.String())
		}
	}
}

// testMachineLost kills QEMU under a running command.
func testMachineLost(t *testing.T, h *Host, pid int) {
	out := lineWriter{make(chan string, 16)}
	go func() {
		<-out.lines
		_ = unix.Kill(pid, unix.SIGKILL) // its own id, from its own state directory
	}()
	code, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo ready; sleep 600"}, Dir: "/", Stdout: out})
	if code != ExitLost || !errors.Is(err, ErrLost) {
		t.Errorf("code %d, %v", code, err)
	}
	for end := time.Now().Add(testTimeout); ; time.Sleep(10 * time.Millisecond) {
		st, err := h.Status(t.Context())
		if err == nil && !st.Running {
			return
		}
		if err != nil || time.Now().After(end) { // its sockets close before it is gone
			t.Fatalf("status %+v, %v", st, err)
		}
	}
}
