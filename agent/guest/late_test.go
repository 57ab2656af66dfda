package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// platform is a directory as sysfs has it, with empty files.
func platform(t *testing.T, files ...string) (root string, open func() (*os.File, error)) {
	t.Helper()
	root = t.TempDir()
	for _, path := range files {
		path = filepath.Join(root, "bus/platform", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root, func() (*os.File, error) { return os.Open(root) }
}

// TestLateDevices: the late devices, and none but them, go to the driver, once.
func TestLateDevices(t *testing.T) {
	const mine, other, bind = "devices/" + agent.LateHID + ":00/driver_override", "devices/LNRO0005:00/driver_override", "drivers/virtio-mmio/bind"
	root, open := platform(t, mine, other, bind)
	l := late{sysfs: open, say: func(s string) { t.Error(s) }}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root, "bus/platform", path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	l.schedule(time.Hour)
	l.attach()
	if l.timer.Stop() {
		t.Error("the timer still runs: every copy of the machine would wake for it")
	}
	for path, want := range map[string]string{mine: "virtio-mmio", other: "", bind: agent.LateHID + ":00"} {
		if got := read(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if err := os.Truncate(filepath.Join(root, "bus/platform", bind), 0); err != nil {
		t.Fatal(err)
	}
	l.attach()
	if got := read(bind); got != "" {
		t.Errorf("attached again: %q", got)
	}
}

// TestLateDevicesRefused: what goes wrong is said, and nothing else comes of it.
func TestLateDevicesRefused(t *testing.T) {
	_, noDriver := platform(t, "devices/"+agent.LateHID+":00/driver_override")
	for name, open := range map[string]func() (*os.File, error){
		"no driver": noDriver,
		"no sysfs":  func() (*os.File, error) { return nil, os.ErrPermission },
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			l := late{sysfs: open, say: func(s string) { said = append(said, s) }}
			l.attach()
			if len(said) != 1 || !strings.Contains(said[0], "late devices") {
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestFreshSysfs: what a guest is to write to is there, whatever the mounts are like.
func TestFreshSysfs(t *testing.T) {
	needsRoot(t)
	f, err := freshSysfs()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.SYSFS_MAGIC || st.Flags&unix.ST_RDONLY != 0 {
		t.Errorf("a file system of type %#x with flags %#x, %v", st.Type, st.Flags, err)
	}
	if _, err := os.Stat("/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/bus/platform"); err != nil {
		t.Error(err)
	}
}
