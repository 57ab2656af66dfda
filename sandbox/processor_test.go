package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"spore/internal/testenv"
	"spore/kvm"
)

func TestProcessor(t *testing.T) {
	testenv.Require(t, testenv.KVM)
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	entries, err := kvm.SupportedCPUID(device)
	if err != nil {
		t.Fatal(err)
	}
	want := kvm.AppendCPUID(nil, entries)
	same := func(a, b []byte) bool { // but for what differs from one of the host's processors to the next: their numbers
		x, errX := kvm.ParseCPUID(a)
		y, errY := kvm.ParseCPUID(b)
		return errX == nil && errY == nil && slices.EqualFunc(x, y, func(x, y kvm.CPUIDEntry) bool { return x.Function == y.Function && x.Index == y.Index })
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "processor")
	if got := Processor(device, ""); !same(got, want) {
		t.Errorf("not kept: %d bytes, want %d", len(got), len(want))
	}
	if got := Processor(device, path); !same(got, want) {
		t.Errorf("asked: %d bytes, want %d", len(got), len(want))
	}
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	told := bytes.Clone(kept)
	told[len(told)-len(want)]++ // another leaf: what is kept is believed, or it would be of no use
	for name, test := range map[string]struct{ file, want []byte }{
		"kept":                {kept, want},
		"as it is kept":       {told, told[len(told)-len(want):]},
		"of another start":    {bytes.Replace(told, []byte("processor 1 "), []byte("processor 1 0"), 1), want},
		"cut off":             {kept[:len(kept)-1], want},
		"nothing but the key": {kept[:len(kept)-len(want)], want},
		"empty":               {nil, want},
		"too long":            {append(bytes.Clone(told), make([]byte, maxProcessor)...), want},
	} {
		if err := os.WriteFile(path, test.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Processor(device, path); !same(got, test.want) {
			t.Errorf("%s: other leaves than expected", name)
		}
	}
	if got := Processor(device, filepath.Join(dir, "missing", "processor")); !same(got, want) {
		t.Errorf("nowhere to keep it: %d bytes, want %d", len(got), len(want))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
