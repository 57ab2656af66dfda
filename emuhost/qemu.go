package emuhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	qemuProgram   = "qemu-system-x86_64"
	qemuPackage   = "qemu-system-x86"
	monitorSocket = "monitor"
	controlSocket = "port0"
	qemuLog       = "qemu.log"
	consoleLog    = "console.log"
	priority      = -10

	// processorModel: everything QEMU can emulate, but for what harms. Fast
	// string operations (erms) are slow when each byte is emulated, and kernels
	// and C libraries choose by that flag. XSAVE and what needs it is off
	// because QEMU's SVM does not intercept XSETBV: KVM then runs guests with
	// an XCR0 they did not set, and their vector registers are not saved.
	processorModel = "max,+svm,-erms,-xsave,-xsaveopt,-xgetbv1,-avx,-avx2,-fma,-f16c,-vaes,-mpx,-pku"

	// kernelCommandLine: no mitigations, for there is nothing to leak between
	// emulated threads; the emulated TSC is the outer machine's, hence
	// reliable, and KVM needs it as the clock source.
	kernelCommandLine = "console=ttyS0 quiet loglevel=3 mitigations=off tsc=reliable clocksource=tsc " +
		"nowatchdog panic=-1 audit=0 lsm=landlock,yama psi=1 cgroup_no_v1=all i8042.noaux i8042.nokbd " +
		"no_timer_check random.trust_cpu=on cryptomgr.notests clearcpuid=rep_good"
)

// machine is a QEMU process being started or running.
type machine struct {
	process *os.Process
	exited  chan struct{} // closed when a process of ours has ended
}

// launch says how to start QEMU.
type launch struct {
	kernel    kernel
	initramfs string
	memory    string // memory file; empty: anonymous memory
	private   bool   // map the memory file privately: it stays as it is
	incoming  bool   // wait for a saved state instead of booting
	shares    bool   // attach the outer file systems: always, except in a hash
}

// arguments are QEMU's arguments. Sockets are relative to the run directory.
func (h *Host) arguments(l launch) []string {
	args := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi",
		"-cpu", processorModel, "-smp", fmt.Sprint(h.cfg.CPUs), "-m", fmt.Sprintf("%dM", h.cfg.Memory>>20),
		"-kernel", l.kernel.vmlinux(), "-initrd", l.initramfs, "-append", kernelCommandLine,
		"-chardev", "socket,id=monitor,server=on,wait=off,path=" + monitorSocket, "-mon", "chardev=monitor,mode=control",
		"-chardev", "file,id=console,path=" + consoleLog, "-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=serial",
		"-netdev", "user,id=out", "-device", "virtio-net-pci,netdev=out,romfile=",
	}
	object := "memory-backend-ram,id=ram"
	if l.memory != "" {
		share := "on"
		if l.private {
			share = "off"
		}
		object = "memory-backend-file,id=ram,mem-path=" + escape(l.memory) + ",share=" + share
	}
	args = append(args, "-object", fmt.Sprintf("%s,size=%dM", object, h.cfg.Memory>>20))
	// The control port comes last: when the guest sees it, it has seen all.
	for i := 1; i <= Ports+1; i++ {
		n := i % (Ports + 1)
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,server=on,wait=off,path=port%d", n, n),
			"-device", fmt.Sprintf("virtserialport,bus=serial.0,chardev=port%d,name=spore.%d", n, n))
	}
	security := "none"
	if os.Geteuid() == 0 {
		security = "passthrough"
	}
	for _, s := range []struct{ tag, path, options string }{
		{"live", "/", ",readonly=on"}, {"usr", "/usr", ",readonly=on"}, {sharedTag, h.SharedDir(), ""},
	} {
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=%s,multidevs=remap%s", s.tag, escape(s.path), security, s.options),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s", s.tag, s.tag))
	}
	if l.incoming {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// escape doubles commas, which separate QEMU's options.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// launch starts QEMU in a session of its own and waits for its monitor.
func (h *Host) launch(ctx context.Context, dir string, l launch) (*machine, *monitor, error) {
	program, err := exec.LookPath(qemuProgram)
	if err != nil {
		return nil, nil, missingProgram(qemuProgram, qemuPackage)
	}
	for _, name := range []string{qemuLog, consoleLog} { // why the last machine ended, for whoever asks
		_ = os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".previous"))
	}
	log, err := os.OpenFile(filepath.Join(dir, qemuLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("create QEMU log: %w", err)
	}
	defer log.Close()
	if err := os.Remove(filepath.Join(dir, monitorSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("remove old socket: %w", err)
	}
	cmd := exec.Command(program, h.arguments(l)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", program, err)
	}
	// Every file access inside takes several turns between QEMU's threads; on
	// a busy machine each of them would wait. Threads inherit the priority. Not
	// everybody may raise it, and it works without.
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, priority)
	// With autogroups, a process's priority counts only within its session
	// (sched(7)), and the session's has to be raised as well.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte(fmt.Sprint(priority)), 0)
	m := &machine{process: cmd.Process, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // its log says why
		close(m.exited)
	}()
	if err := writeProcess(dir, cmd.Process.Pid); err != nil {
		m.kill()
		return nil, nil, err
	}
	mon, err := m.awaitMonitor(ctx, dir)
	if err != nil {
		m.kill()
		return nil, nil, err
	}
	return m, mon, nil
}

// awaitMonitor connects to the monitor as soon as QEMU offers it.
func (m *machine) awaitMonitor(ctx context.Context, dir string) (*monitor, error) {
	for {
		mon, err := dialMonitor(ctx, dir)
		if err == nil {
			return mon, nil
		}
		select {
		case <-m.exited:
			return nil, fmt.Errorf("start QEMU: it ended at once: %s", tail(filepath.Join(dir, qemuLog)))
		default:
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for QEMU: %w", err)
		}
	}
}

// kill ends QEMU and waits for it.
func (m *machine) kill() {
	_ = m.process.Kill()
	<-m.exited
}

// tail is the end of a log file, for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-1000):]))
}

// dialIn connects to a socket in dir. The path goes through a descriptor:
// socket addresses are short, directories need not be.
func dialIn(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
	if err != nil {
		return nil, fmt.Errorf("connect to the emulated host: %w", err)
	}
	return conn, nil
}
