package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/vmm/api"
)

const patience = 2 * time.Minute

// scratch is a directory for as long as the tests run.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "spore-vmm-test"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// build makes spore-vmm, once for all tests.
var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "spore-vmm")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return path, err
})

func binary(t *testing.T) string {
	t.Helper()
	testenv.Require(t, testenv.KVM)
	path, err := build()
	if err != nil {
		t.Fatalf("build spore-vmm: %v", err)
	}
	return path
}

var (
	// mov dx, 0x600; mov al, 0x34; out dx, al; hlt
	powerOffGuest = []byte{0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4}
	spinningGuest = []byte{0xeb, 0xfe}
)

// inherit opens what the VMM is given: configuration, kvm, control, kernel, log, disk.
func inherit(t *testing.T, guest []byte) (cfg api.Config, files []*os.File, config, control, log *os.File) {
	t.Helper()
	check := func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "guest")
	if err := os.WriteFile(image, guest, 0o644); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	configRead, configWrite, err := os.Pipe()
	check(configRead, err)
	logRead, logWrite, err := os.Pipe()
	check(logWrite, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	files = []*os.File{
		configRead,
		check(os.OpenFile("/dev/kvm", os.O_RDWR, 0)),
		check(os.NewFile(uintptr(pair[0]), "control"), nil),
		check(os.Open(image)),
		logWrite,
		check(os.OpenFile(disk, os.O_RDWR, 0)),
		check(os.Open("/dev/urandom")),
	}
	cfg = api.Config{
		Version: api.Version, ID: "test", VCPUs: 1, Memory: api.MinMemory, Test: true, Entropy: 5, Balloon: true,
		Control: 1, Boot: api.Boot{Kernel: 2, Initrd: api.NoFile}, Log: 3, Disks: []api.Disk{{File: 4, ID: "disk"}},
		Console: api.Console{Output: api.NoFile, Input: api.NoFile},
	}
	return cfg, files, check(configWrite, nil), check(os.NewFile(uintptr(pair[1]), "control"), nil), check(logRead, nil)
}

// launched runs the binary, in a jail or not, with a configuration, and returns a function that reads the next event.
func launched(t *testing.T, jailed bool, guest []byte) (cmd *vmmProcess, stderr said, control *os.File, event func() api.Event) {
	t.Helper()
	cfg, files, config, control, _ := inherit(t, guest)
	cmd, stderr = launch(t, jailed, files)
	for _, f := range files {
		f.Close()
	}
	if err := api.Send(config, &cfg); err != nil {
		t.Fatal(err)
	}
	return cmd, stderr, control, func() api.Event {
		t.Helper()
		timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer timer.Stop()
		var m api.Message
		if err := api.Receive(control, &m); err != nil || m.Event == nil {
			cmd.Wait()
			t.Fatalf("waiting for an event: %v %+v; process: %v\n%s", err, m, cmd.ProcessState, stderr)
		}
		return *m.Event
	}
}

func TestWholeLife(t *testing.T) {
	for _, jailed := range []bool{false, true} {
		t.Run(fmt.Sprintf("jailed %v", jailed), func(t *testing.T) {
			cmd, stderr, _, event := launched(t, jailed, powerOffGuest)
			started := event()
			var names []string
			for _, s := range started.Steps {
				names = append(names, s.Name)
				t.Logf("%-10s %8.3f ms", s.Name, float64(s.Nanos)/1e6)
			}
			if started.Kind != api.EventStarted || !strings.Contains(strings.Join(names, " "), "config memory vm lines devices kernel registers") {
				t.Errorf("first event %+v", started)
			}
			if end := event(); end.Kind != api.EventExit || end.Reason != api.ExitPowerOff {
				t.Errorf("last event %+v", end)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("process: %v\n%s", err, stderr)
			}
		})
	}
}

func TestClosedControlSocketEndsIt(t *testing.T) {
	for _, jailed := range []bool{false, true} {
		t.Run(fmt.Sprintf("jailed %v", jailed), func(t *testing.T) {
			cmd, stderr, control, event := launched(t, jailed, spinningGuest)
			event()
			control.Close()
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code < 0 {
				t.Errorf("process: %v\n%s", cmd.ProcessState, stderr)
			}
		})
	}
}

func TestControlRequests(t *testing.T) {
	cmd, stderr, control, event := launched(t, true, spinningGuest)
	event()
	ask := func(id uint64, op api.Op) api.Reply {
		t.Helper()
		if err := api.Send(control, &api.Request{ID: id, Op: op}); err != nil {
			t.Fatal(err)
		}
		var m api.Message
		if err := api.Receive(control, &m); err != nil || m.Reply == nil || m.Reply.ID != id {
			cmd.Wait()
			t.Fatalf("%s: %v %+v; %v\n%s", op, err, m, cmd.ProcessState, stderr)
		}
		return *m.Reply
	}
	for i, op := range []api.Op{api.OpPause, api.OpStats, api.OpResume, api.OpPause, api.OpResume} {
		if r := ask(uint64(i), op); r.Error != "" {
			t.Errorf("%s: %s", op, r.Error)
		}
	}
	if r := ask(9, api.OpResume); r.Error == "" {
		t.Error("resume of a running machine: no error")
	}
	ask(10, api.OpStop)
	if end := event(); end.Reason != api.ExitStopped {
		t.Errorf("last event %+v", end)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("process: %v\n%s", err, stderr)
	}
}

func TestBadConfigurationIsReported(t *testing.T) {
	cmd := exec.Command(binary(t), "-unjailed")
	cfg, files, config, control, _ := inherit(t, powerOffGuest)
	cfg.VCPUs = 99
	cmd.ExtraFiles = files
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	if err := api.Send(config, &cfg); err != nil {
		t.Fatal(err)
	}
	var m api.Message
	if err := api.Receive(control, &m); err != nil || m.Event == nil || m.Event.Reason != api.ExitInternal || !strings.Contains(m.Event.Detail, "99 vCPUs") {
		t.Errorf("got %v, %+v", err, m.Event)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "99 vCPUs") {
		t.Errorf("process: %v, %s", err, stderr.String())
	}
}
