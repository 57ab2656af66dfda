// Package guest is the agent inside the guest, PID 1: it mounts, reaps, and carries out the host's requests.
// The reading order is Run's.
package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Run is PID 1's life. It returns only when the guest could not be set up.
func Run() error {
	if err := early(); err != nil {
		return err
	}
	slackenMonitor()
	holdSignals()
	conn, err := dialHost(agent.ControlPort)
	if err != nil {
		return fmt.Errorf("call host: %w", err)
	}
	r, w := agent.NewReader(conn), agent.NewWriter(conn)
	if err := w.SendJSON(agent.FrameHello, hello()); err != nil {
		return fmt.Errorf("greet host: %w", err)
	}
	// The host takes a moment to answer: do what needs no answer meanwhile.
	prepared := prepare()
	var s agent.Setup
	if err := r.Expect(agent.FrameSetup, &s); err != nil {
		return fmt.Errorf("wait for set-up: %w", err)
	}
	a := &server{
		setup: s, reaper: newReaper(), groups: groups{root: workloads}, off: off, hooks: hooksDir,
		late: late{sysfs: freshSysfs, say: Say},
	}
	if err := errors.Join(prepared, a.setUp()); err != nil {
		return errors.Join(err, w.SendJSON(agent.FrameReady, agent.Failure{Text: err.Error()}))
	}
	l, err := listen(agent.RequestPort)
	if err != nil {
		return errors.Join(err, w.SendJSON(agent.FrameReady, agent.Failure{Text: err.Error()}))
	}
	if err := w.SendJSON(agent.FrameReady, agent.Failure{}); err != nil {
		return fmt.Errorf("report ready: %w", err)
	}
	// The control connection stays open: its end is how the host would learn of ours.
	defer conn.Close()
	a.late.schedule(lateAfter)
	return l.serve(func(c io.ReadWriteCloser) { a.serve(c) })
}

// early mounts what the agent itself needs. The initramfs has the directories.
func early() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

func hello() agent.Hello {
	h := agent.Hello{Version: agent.Version, Uptime: uptime()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// prepare makes what is the same in every guest.
func prepare() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{{"cgroup", makeCgroup}, {"loopback", loopbackUp}, {"limits", setLimits}} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// setUp makes the guest what the host wants it to be.
func (a *server) setUp() error {
	for _, step := range []struct {
		name string
		do   func(agent.Setup) error
	}{
		{"clock", func(s agent.Setup) error { return setClock(s.Now) }},
		{"entropy", func(s agent.Setup) error { return addEntropy(s.Entropy) }},
		{"root", a.mountRoot},
		{"hostname", setHostname},
		{"network", func(s agent.Setup) error { return a.setNetwork(s.Network, false) }},
		{"cgroup", setCgroup},
	} {
		if err := step.do(a.setup); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// setClock steps the clock to now, in nanoseconds since 1970.
func setClock(now int64) error {
	if now == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(now)
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

func setHostname(s agent.Setup) error {
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return err
	}
	if s.ReadOnly {
		return nil
	}
	// Best effort: an image without /etc, or with links there, goes without.
	writeIfPlain("/etc/hostname", s.Hostname+"\n")
	if s.Network == nil {
		writeIfPlain(hostsFile, hosts(s.Hostname, "", nil))
	}
	return nil
}

func writeIfPlain(path, text string) {
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return
	}
	_ = rewrite(path, text)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		return nil // a kernel without a network stack
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// maxFiles is how many files a process may have open, and this one for all its requests.
const maxFiles = 64 << 10

func setLimits() error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles, Max: maxFiles})
}

// holdSignals makes every signal harmless that a process could end us by, and the kernel with us. They must not be ignored: what PID 1
// ignores its children would ignore too. Nor may they have their default action: the kernel spares PID 1 that, but not one whose main thread
// blocks the signal meanwhile, as the runtime's may. Those that would only stop us have it, and stop nobody. The runtime catches the
// others by itself and does nothing (os/signal). To ask it for a signal takes a hand-over to another thread and back, so only those that it
// would act on are asked for.
func holdSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGTERM,
		unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS)
}

// Say writes a line to the kernel's log, which reaches the console even when the machine ends right after.
func Say(line string) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		f = os.Stderr
	}
	fmt.Fprintln(f, "<2>"+line)
}

// PowerOff ends the machine, after a failed set-up too. It does not return.
func PowerOff() {
	unix.Sync()
	off()
}

func off() {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	select {}
}
