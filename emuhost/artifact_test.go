package emuhost

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestResolveModules(t *testing.T) {
	dir := t.TempDir()
	index := strings.Join([]string{
		"kernel/a.ko:",
		"kernel/b.ko: kernel/a.ko",
		"kernel/sub/c-d.ko.xz: kernel/b.ko kernel/a.ko",
		"kernel/e.ko:",
	}, "\n")
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(index), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ names, want []string }{
		{[]string{"e"}, []string{"kernel/e.ko"}},
		{[]string{"c_d"}, []string{"kernel/a.ko", "kernel/b.ko", "kernel/sub/c-d.ko.xz"}},
		{[]string{"b", "c-d", "a"}, []string{"kernel/a.ko", "kernel/b.ko", "kernel/sub/c-d.ko.xz"}},
		{[]string{"built_in", "e"}, []string{"kernel/e.ko"}},
	} {
		got, err := resolveModules(dir, c.names)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, %v", c.names, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := resolveModules(dir, []string{"a"}); err == nil {
		t.Error("a broken index was accepted")
	}
}

// bzImage makes a kernel image around a payload.
func bzImage(payload []byte) []byte {
	image := make([]byte, 5*512)
	image[0x1f1] = 4
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

func TestExtractVMLinux(t *testing.T) {
	h := &Host{cfg: Config{Progress: func(string) {}}}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte("\x7fELF kernel")); err != nil || z.Close() != nil {
		t.Fatal("gzip")
	}
	got, err := h.extractVMLinux(t.Context(), bzImage(packed.Bytes()))
	if err != nil || string(got) != "\x7fELF kernel" {
		t.Errorf("got %q, %v", got, err)
	}
	outside := bzImage([]byte("\x1f\x8b......"))
	binary.LittleEndian.PutUint32(outside[0x248:], 0xffffffff)
	for name, image := range map[string][]byte{
		"empty":           nil,
		"no header":       make([]byte, 4096),
		"payload outside": outside,
		"unknown payload": bzImage([]byte("something else")),
		"broken payload":  bzImage([]byte("\x1f\x8b not really gzip")),
	} {
		if _, err := h.extractVMLinux(t.Context(), image); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestInitramfs reads the archive back with the program that defines the format.
func TestInitramfs(t *testing.T) {
	cpioProgram, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip(missingProgram("cpio", "cpio"))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.ko"), []byte("module"), 0o600); err != nil {
		t.Fatal(err)
	}
	xz := exec.Command("xz", "-c")
	xz.Stdin = strings.NewReader("compressed module")
	packed, err := xz.Output()
	if err != nil {
		t.Fatalf("xz: %v (apt-get install xz-utils)", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "n.ko.xz"), packed, 0o600); err != nil {
		t.Fatal(err)
	}
	archive, err := packInitramfs([]byte("init program"), dir, []string{"m.ko", "n.ko.xz"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpioProgram, "-tv", "--quiet")
	cmd.Stdin = bytes.NewReader(archive)
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v: %s", err, list)
	}
	for _, name := range []string{"init", "dev/console", "modules/m.ko", "modules/n.ko", "modules.list"} {
		if !strings.Contains(string(list), " "+name+"\n") {
			t.Errorf("no %s in:\n%s", name, list)
		}
	}
	if !bytes.Contains(archive, []byte("compressed module")) {
		t.Error("a module is still compressed")
	}
}

func TestSuite(t *testing.T) {
	for suite, ok := range map[string]bool{"": true, "bookworm-backports": true, "../etc": false, "a b": false, "-o": false} {
		_, err := Open(Config{Suite: suite, CacheDir: t.TempDir(), StateDir: t.TempDir(), InitBinary: "init"})
		if (err == nil) != ok {
			t.Errorf("suite %q: %v", suite, err)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	h := &Host{}
	_, err := h.tool(t.Context(), "", "some-package", "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := h.snapshotFor(kernel{}, ""); err == nil || !strings.Contains(err.Error(), "apt-get install "+qemuPackage) {
		t.Errorf("got %v", err)
	}
}

// TestSnapshotName expects what matters to a snapshot in its name, and nothing else.
func TestSnapshotName(t *testing.T) {
	program := filepath.Join(t.TempDir(), qemuProgram)
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(program))
	name := func(change func(*Host, *kernel, *string)) string {
		h, k, initramfs := &Host{cfg: Config{CacheDir: "/c", StateDir: "/s", Memory: 1 << 30, CPUs: 2}}, kernel{Dir: "/k"}, "/i"
		if change != nil {
			change(h, &k, &initramfs)
		}
		s, err := h.snapshotFor(k, initramfs)
		if err != nil {
			t.Fatal(err)
		}
		return s.dir
	}
	base := name(nil)
	if name(func(h *Host, _ *kernel, _ *string) { h.cfg.StateDir = "/elsewhere" }) != base {
		t.Error("the state directory is part of the name")
	}
	for what, change := range map[string]func(*Host, *kernel, *string){
		"memory":    func(h *Host, _ *kernel, _ *string) { h.cfg.Memory *= 2 },
		"CPUs":      func(h *Host, _ *kernel, _ *string) { h.cfg.CPUs = 1 },
		"kernel":    func(_ *Host, k *kernel, _ *string) { k.Dir = "/other" },
		"initramfs": func(_ *Host, _ *kernel, i *string) { *i = "/other" },
	} {
		if name(change) == base {
			t.Errorf("%s is not part of the name", what)
		}
	}
}

func TestPrune(t *testing.T) {
	h, parent := &Host{}, t.TempDir()
	for i := range keepSnapshots + 3 {
		if err := os.Mkdir(filepath.Join(parent, fmt.Sprint(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(parent, saveTry+"1"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.prune(parent)
	left, err := os.ReadDir(parent)
	if err != nil || len(left) > keepSnapshots {
		t.Errorf("%d left, %v", len(left), err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), saveTry) {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// TestEndMachine kills a recorded process and no other.
func TestEndMachine(t *testing.T) {
	dir := t.TempDir()
	if err := endMachine(t.Context(), dir); err != nil {
		t.Errorf("nothing recorded: %v", err)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	other := fmt.Sprintf("%d 1\n", cmd.Process.Pid) // its id, but born at another time
	if err := os.WriteFile(filepath.Join(dir, processFile), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := endMachine(t.Context(), dir); err != nil || processBirth(cmd.Process.Pid) == "" {
		t.Fatalf("another process was killed (%v)", err)
	}
	if err := writeProcess(dir, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := endMachine(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := <-ended; !errors.As(err, &exit) {
		t.Errorf("it ended with %v", err)
	}
}
