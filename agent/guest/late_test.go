package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/agent"
)

// TestLateDevices lays out a directory as sysfs has it: the late devices, and none but them, go to the driver, once.
func TestLateDevices(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	mine, other := "devices/"+agent.LateHID+":00/driver_override", "devices/LNRO0005:00/driver_override"
	write(mine, "")
	write(other, "")
	write("virtio-mmio/bind", "")
	l := late{devices: filepath.Join(dir, "devices"), driver: filepath.Join(dir, "virtio-mmio"), say: func(s string) { t.Error(s) }}
	l.attach()
	for path, want := range map[string]string{mine: "virtio-mmio", other: "", "virtio-mmio/bind": agent.LateHID + ":00"} {
		if got := read(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	write("virtio-mmio/bind", "")
	l.attach()
	if got := read("virtio-mmio/bind"); got != "" {
		t.Errorf("attached again: %q", got)
	}
}

// TestLateDevicesRefused has a driver that is not there: that is said, and nothing else comes of it.
func TestLateDevicesRefused(t *testing.T) {
	dir := t.TempDir()
	override := filepath.Join(dir, "devices", agent.LateHID+":00", "driver_override")
	if err := os.MkdirAll(filepath.Dir(override), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(override, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var said []string
	l := late{devices: filepath.Join(dir, "devices"), driver: filepath.Join(dir, "virtio-mmio"), say: func(s string) { said = append(said, s) }}
	l.attach()
	if len(said) != 1 || !strings.Contains(said[0], agent.LateHID+":00") {
		t.Errorf("said %q", said)
	}
}
