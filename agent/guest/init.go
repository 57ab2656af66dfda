// Package guest is the agent inside the guest, PID 1: it mounts, reaps, and carries out the host's requests.
// The reading order is Run's.
package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Run is PID 1's life. It returns only when the guest could not be set up.
func Run() error {
	if err := early(); err != nil {
		return err
	}
	conn, err := dialHost(agent.ControlPort)
	if err != nil {
		return fmt.Errorf("call host: %w", err)
	}
	r, w := agent.NewReader(conn), agent.NewWriter(conn)
	if err := w.SendJSON(agent.FrameHello, hello()); err != nil {
		return fmt.Errorf("greet host: %w", err)
	}
	var s agent.Setup
	if err := r.Expect(agent.FrameSetup, &s); err != nil {
		return fmt.Errorf("wait for set-up: %w", err)
	}
	a := &server{setup: s, reaper: newReaper()}
	if err := a.setUp(); err != nil {
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

// setUp makes the guest what the host wants it to be.
func (a *server) setUp() error {
	for _, step := range []struct {
		name string
		do   func(agent.Setup) error
	}{
		{"clock", setClock},
		{"entropy", func(s agent.Setup) error { return addEntropy(s.Entropy) }},
		{"root", mountRoot},
		{"hostname", setHostname},
		{"loopback", func(agent.Setup) error { return loopbackUp() }},
		{"cgroup", setCgroup},
	} {
		if err := step.do(a.setup); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func setClock(s agent.Setup) error {
	if s.Now == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(s.Now)
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
	writeIfPlain("/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t"+s.Hostname+"\n")
	return nil
}

func writeIfPlain(path, text string) {
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return
	}
	_ = os.WriteFile(path, []byte(text), 0o644)
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

// Say writes a line to the kernel's log, which reaches the console even when the machine ends right after.
func Say(line string) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		f = os.Stderr
	}
	fmt.Fprintln(f, "<2>"+line)
}

// PowerOff ends the machine, after a failed set-up too.
func PowerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	select {}
}

// resolve says which file argv[0] names, by the PATH of env and from dir, as execvp does.
func resolve(name, dir string, env []string) (string, error) {
	if strings.ContainsRune(name, '/') {
		path := name
		if !strings.HasPrefix(path, "/") {
			path = dir + "/" + path
		}
		return path, executable(path)
	}
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var denied error
	for _, d := range strings.Split(search, ":") {
		if d == "" {
			d = dir
		}
		path := d + "/" + name
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &os.PathError{Op: "exec", Path: name, Err: unix.ENOENT}
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return &os.PathError{Op: "exec", Path: path, Err: unix.EISDIR}
	case st.Mode()&0o111 == 0:
		return &os.PathError{Op: "exec", Path: path, Err: unix.EACCES}
	}
	return nil
}
