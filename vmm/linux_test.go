package vmm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guest"
	"spore/internal/testenv"
	"spore/vmm/api"
)

// guestBoots asks for everything that a Linux guest takes beside /dev/kvm: "make testbed" has it.
var guestBoots = testenv.Need{Name: "guest", Probe: func() error {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(" svm")) && !bytes.Contains(b, []byte(" vmx")) {
		return errors.New("processor has neither AMD-V nor VT-x")
	}
	if _, err := os.Stat(vmmPath()); err != nil {
		return err
	}
	_, err = kernelPath()
	return err
}}

// vmmPath is spore-vmm as "make build" leaves it.
func vmmPath() string {
	if dir := os.Getenv("SPORE_BIN"); dir != "" {
		return filepath.Join(dir, "spore-vmm")
	}
	return "../bin/spore-vmm"
}

// kernelPath is the guest kernel as "make kernel" leaves it, or what SPORE_KERNEL names.
func kernelPath() (string, error) {
	if path := os.Getenv("SPORE_KERNEL"); path != "" {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return guest.KernelPath(filepath.Join(cache, "spore"))
}

// patience bounds a whole boot; an emulated host is slow.
const patience = 3 * time.Minute

// process is a running spore-vmm.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	control *os.File
	console chan string // the whole output, once
	log     chan string // likewise
	began   time.Time
}

// launch starts spore-vmm for cfg, which it completes with control and console. The first of files is File 1.
func launch(t *testing.T, cfg api.Config, files ...string) *process {
	t.Helper()
	p := &process{t: t, console: make(chan string, 1), log: make(chan string, 1)}
	var inherit []*os.File
	add := func(f *os.File, err error) api.File {
		if err != nil {
			t.Fatal(err)
		}
		inherit = append(inherit, f)
		return api.File(len(inherit) - 2) // the configuration comes first
	}
	configRead, configWrite, err := os.Pipe()
	add(configRead, err)
	add(os.OpenFile("/dev/kvm", os.O_RDWR, 0)) // api.KVMFile
	for _, path := range files {
		add(os.Open(path))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.control = os.NewFile(uintptr(pair[0]), "control")
	t.Cleanup(func() { p.control.Close() })
	out, in, err := os.Pipe()
	cfg.Console.Output = add(in, err)
	cfg.Control = add(os.NewFile(uintptr(pair[1]), "control"), nil)
	logOut, logIn, err := os.Pipe()
	cfg.Log = add(logIn, err)
	cfg.Entropy = add(os.Open("/dev/urandom"))
	cfg.Version, cfg.Console.Input = api.Version, api.NoFile
	p.cmd = exec.Command(vmmPath(), "-unjailed")
	p.cmd.ExtraFiles = inherit
	p.cmd.Stderr = os.Stderr
	p.began = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	for _, f := range inherit {
		f.Close()
	}
	if err := api.Send(configWrite, &cfg); err != nil {
		t.Fatal(err)
	}
	configWrite.Close()
	collect := func(f *os.File, to chan string) {
		b, _ := io.ReadAll(f)
		to <- string(b)
	}
	go collect(out, p.console)
	go collect(logOut, p.log)
	return p
}

// event waits for the next message, which must be an event.
func (p *process) event() api.Event {
	p.t.Helper()
	var m api.Message
	timer := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := api.Receive(p.control, &m); err != nil || m.Event == nil {
		p.t.Fatalf("waiting for an event: %v, %+v\n%s", err, m, <-p.console)
	}
	return *m.Event
}

// request makes one control request.
func (p *process) request(r api.Request) api.Reply {
	p.t.Helper()
	if err := api.Send(p.control, &r); err != nil {
		p.t.Fatal(err)
	}
	var m api.Message
	if err := api.Receive(p.control, &m); err != nil || m.Reply == nil {
		p.t.Fatalf("waiting for a reply: %v, %+v", err, m)
	}
	return *m.Reply
}

// initramfs writes a newc cpio with a console device and an /init that says "init runs" and then makes the reboot(2) call
// with the given command.
func initramfs(t *testing.T, reboot uint32) string {
	t.Helper()
	var b bytes.Buffer
	entry := func(name string, mode, major, minor int, body []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			b.Len(), mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
		pad := func() {
			for b.Len()%4 != 0 {
				b.WriteByte(0)
			}
		}
		b.WriteString(name + "\x00")
		pad()
		b.Write(body)
		pad()
	}
	entry("dev", 0o40755, 0, 0, nil)
	entry("dev/console", 0o20600, 5, 1, nil)
	entry("init", 0o100755, 0, 0, initProgram(reboot))
	entry("TRAILER!!!", 0, 0, 0, nil)
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// initProgram is a static ELF executable of a few instructions.
func initProgram(reboot uint32) []byte {
	const base, headers = 0x400000, 64 + 56
	le := binary.LittleEndian
	text := "init runs\n"
	code := []byte{0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe} // mov eax, write; mov edi, 1; mov esi, text
	code = le.AppendUint32(code, base+headers+58)
	code = append(code, 0xba, byte(len(text)), 0, 0, 0, 0x0f, 0x05) // mov edx, len; syscall
	code = append(code, 0xbf)                                       // mov edi, magic1
	code = le.AppendUint32(code, 0xfee1dead)
	code = append(code, 0xbe) // mov esi, magic2
	code = le.AppendUint32(code, 672274793)
	code = append(code, 0xba) // mov edx, command
	code = le.AppendUint32(code, reboot)
	code = append(code, 0xb8, 169, 0, 0, 0, 0x0f, 0x05, 0xf4) // mov eax, reboot; syscall; hlt, a fault here
	code = append(code, make([]byte, 58-len(code))...)
	code = append(code, text...)
	e := make([]byte, headers)
	copy(e, "\x7fELF\x02\x01\x01")
	le.PutUint16(e[16:], 2)
	le.PutUint16(e[18:], 62)
	le.PutUint32(e[20:], 1)
	le.PutUint64(e[24:], base+headers)
	le.PutUint64(e[32:], 64)
	le.PutUint16(e[52:], 64)
	le.PutUint16(e[54:], 56)
	le.PutUint16(e[56:], 1)
	ph := e[64:]
	le.PutUint32(ph, 1)
	le.PutUint32(ph[4:], 5)
	le.PutUint64(ph[16:], base)
	le.PutUint64(ph[24:], base)
	le.PutUint64(ph[32:], uint64(headers+len(code)))
	le.PutUint64(ph[40:], uint64(headers+len(code)))
	le.PutUint64(ph[48:], 4096)
	return append(e, code...)
}

const (
	powerOff = 0x4321fedc // LINUX_REBOOT_CMD_POWER_OFF
	restart  = 0x01234567 // LINUX_REBOOT_CMD_RESTART
)

func TestLinuxBoots(t *testing.T) {
	testenv.Require(t, testenv.KVM, guestBoots)
	vmlinux, err := kernelPath()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		vcpus  int
		memory int64
		reboot uint32
		want   api.ExitReason
		kernel string // beside vmlinux
	}{
		{"1 vCPU 128 MiB", 1, 128 << 20, powerOff, api.ExitPowerOff, "vmlinux"},
		{"2 vCPUs 64 MiB", 2, 64 << 20, powerOff, api.ExitPowerOff, "vmlinux"},
		{"4 vCPUs 256 MiB", 4, 256 << 20, powerOff, api.ExitPowerOff, "vmlinux"},
		{"5 GiB", 1, 5 << 30, powerOff, api.ExitPowerOff, "vmlinux"},
		{"restart", 1, 128 << 20, restart, api.ExitReset, "vmlinux"},
		{"bzImage", 1, 128 << 20, powerOff, api.ExitPowerOff, "bzImage"},
		{"init dies", 1, 128 << 20, 0, api.ExitPanic, "vmlinux"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := api.Config{
				ID: "test", VCPUs: test.vcpus, Memory: test.memory, Balloon: true,
				Boot: api.Boot{Kernel: 1, Initrd: 2, Cmdline: guest.Cmdline()},
			}
			p := launch(t, cfg, filepath.Join(filepath.Dir(vmlinux), test.kernel), initramfs(t, test.reboot))
			started := p.event()
			up := time.Since(p.began)
			end := p.event()
			total := time.Since(p.began)
			console := <-p.console
			if end.Reason != test.want || !strings.Contains(console, "init runs") {
				t.Errorf("ended with %+v, want %s; console:\n%s", end, test.want, console)
			}
			for _, s := range started.Steps {
				t.Logf("%-10s %6.2f ms", s.Name, float64(s.Nanos)/1e6)
			}
			t.Logf("started after %v, ended after %v", up, total)
			if testing.Verbose() {
				t.Logf("%s\n%s", console, <-p.log)
			}
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("spore-vmm: %v", err)
			}
		})
	}
}
