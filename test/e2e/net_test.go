package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/testenv"
	"spore/vmm/api"
)

// outside is the network of a guest: a namespace of a thread, with a tap in it.
type outside struct {
	do  chan func()
	tap *os.File
}

// newOutside makes one, with these addresses on the tap. It ends with the test.
func newOutside(t *testing.T, addresses ...string) *outside {
	t.Helper()
	testenv.Require(t, testenv.Need{Name: "root", Probe: func() error {
		if os.Getuid() != 0 {
			return errors.New("not root")
		}
		_, err := os.Stat("/dev/net/tun")
		return err
	}})
	o := &outside{do: make(chan func())}
	var err error
	go func() {
		runtime.LockOSThread() // for good: it ends with its namespace
		for f := range o.do {
			f()
		}
	}()
	o.in(func() { err = o.make(addresses) })
	t.Cleanup(func() { close(o.do) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.tap.Close() })
	return o
}

// in runs f on the thread of the namespace. Sockets that are made there stay there.
func (o *outside) in(f func()) {
	done := make(chan struct{})
	o.do <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (o *outside) make(addresses []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	o.tap = os.NewFile(uintptr(fd), "tap")
	ifr, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := errors.Join(
		unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12),
		unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN),
	); err != nil {
		return fmt.Errorf("make tap: %w", err)
	}
	commands := [][]string{{"link", "set", "lo", "up"}, {"link", "set", "tap0", "up"}}
	for _, a := range addresses {
		args := []string{"addr", "add", a, "dev", "tap0"}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		commands = append(commands, args)
	}
	for _, args := range commands {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// listen serves TCP there: each connection gets its bytes back after it has sent them all.
func (o *outside) listen(t *testing.T, address string) {
	t.Helper()
	var l net.Listener
	var err error
	o.in(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(io.LimitReader(c, 64<<20))
				c.Write(b)
			}()
		}
	}()
}

// echo sends bytes to an address, takes as many back, and says how many and what their hash is, both ways.
const echo = `
import hashlib, socket, sys, threading
n = int(sys.argv[3])
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=100)
data = open('/dev/urandom', 'rb').read(n)
s.sendall(data); s.shutdown(socket.SHUT_WR)
got = b''
while True:
    b = s.recv(1 << 20)
    if not b: break
    got += b
print(len(got), hashlib.sha256(data).hexdigest() == hashlib.sha256(got).hexdigest())
`

// hold opens a connection, says so, and tells how a read of it ends.
const hold = `
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=None)
print('open', flush=True)
try:
    print('got', s.recv(1))
except OSError as e:
    print(e.strerror, flush=True)
`

const testCA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

// TestGuestNetwork boots a guest with a tap, makes connections of both families with segments of every size, and wakes a copy of it
// elsewhere: with another address, and without the connections that it had.
func TestGuestNetwork(t *testing.T) {
	u := newUser(t)
	path := u.imagePath(image)
	here := newOutside(t, "10.77.0.1/24", "fd77::1/64")
	here.listen(t, "[::]:7000")
	m := newMachine(t, path, here.tap, "02:00:00:00:77:02", nil)
	m.setUp(agent.Setup{Hostname: "here", Now: time.Now().UnixNano(), Lower: "vda", Pids: 512, Network: &agent.Network{
		MAC: "02:00:00:00:77:02", MTU: 1400, Addresses: []string{"10.77.0.2/24", "fd77::2/64"}, Gateways: []string{"10.77.0.1", "fd77::1"},
		DNS: []string{"10.77.0.1"}, Search: []string{"example.org"}, Hosts: []string{"10.77.0.1\touter"}, CA: []byte(testCA),
	}})
	for file, want := range map[string]string{
		"/sys/class/net/eth0/address": "02:00:00:00:77:02\n", "/sys/class/net/eth0/mtu": "1400\n", "/sys/class/net/eth0/carrier": "1\n",
		"/etc/resolv.conf": "search example.org\nnameserver 10.77.0.1\n", "/run/spore/ca.pem": testCA,
		"/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.77.0.2\there\n10.77.0.1\touter\n",
	} {
		if got := m.exec("cat", file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := m.exec("sh", "-c", `echo $SSL_CERT_FILE; tail -n 3 $SSL_CERT_FILE`); got != "/run/spore/ca-bundle.pem\n"+testCA {
		t.Errorf("certificates: %q", got)
	}
	for _, host := range []string{"outer", "fd77::1"} {
		if got := m.exec("python3", "-c", echo, host, "7000", "8000000"); got != "8000000 True\n" {
			t.Errorf("echo of %s: %q", host, got)
		}
	}
	counters := m.ask(api.Request{ID: 1, Op: api.OpStats}).Counters["net"]
	t.Logf("counters: %v", counters)
	if counters["transmitted_bytes"] < 16e6 || counters["received_bytes"] < 16e6 || counters["malformed"]+counters["bad_offload"]+counters["failed"] != 0 {
		t.Errorf("counters: %v", counters)
	}
	if counters["transmitted_bytes"]/counters["transmitted_frames"] < 4000 {
		t.Error("the guest sends no large segments")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	exec := agent.Exec{Args: []string{"python3", "-c", hold, "10.77.0.1", "7000"}, Env: []string{"PATH=/usr/bin"}, Dir: "/", Main: true}
	p, lines := startLines(t, ctx, m, func(s agent.Streams) (*agent.Process, error) { return agent.Start(ctx, m.dial, exec, s) })
	if line := lines(); line != "open" {
		t.Fatalf("the program says %q", line)
	}
	id := p.ID()
	if err := agent.Hold(ctx, m.dial); err != nil {
		t.Fatal(err)
	}
	files := m.save()
	m.stop()

	there := newOutside(t, "10.78.0.1/24")
	there.listen(t, "10.78.0.1:7000")
	m = newMachine(t, path, there.tap, "02:00:00:00:78:09", files)
	resumed := agent.Resumed{Now: time.Now().UnixNano(), Entropy: entropy(), Hostname: "there", Network: &agent.Network{
		MAC: "02:00:00:00:78:09", Addresses: []string{"10.78.0.9/24"}, Gateways: []string{"10.78.0.1"}, Hosts: []string{"10.78.0.1\touter"},
	}}
	began := time.Now()
	if err := agent.Resume(ctx, m.dial, resumed); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest is another after %v", time.Since(began))
	_, lines = startLines(t, ctx, m, func(s agent.Streams) (*agent.Process, error) { return agent.Attach(ctx, m.dial, id, s) })
	if line := lines(); line != "Software caused connection abort" {
		t.Errorf("the connection of the first machine ends with %q", line)
	}
	if got := m.exec("python3", "-c", echo, "outer", "7000", "3000000"); got != "3000000 True\n" {
		t.Errorf("echo: %q", got)
	}
	if got := m.exec("sh", "-c", "cat /sys/class/net/eth0/address /proc/net/fib_trie /proc/net/if_inet6; ls /run/spore"); !strings.HasPrefix(got, "02:00:00:00:78:09\n") ||
		strings.Contains(got, "10.77.0") || strings.Contains(got, "fd77") || strings.Contains(got, "ca.pem") {
		t.Errorf("left over: %s", got)
	}
}

// startLines starts or attaches to a process and returns what takes its next line.
func startLines(t *testing.T, ctx context.Context, m *machine, start func(agent.Streams) (*agent.Process, error)) (*agent.Process, func() string) {
	t.Helper()
	r, w := io.Pipe()
	p, err := start(agent.Streams{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	return p, func() string {
		t.Helper()
		var line []byte
		for b := make([]byte, 1); ; {
			if _, err := r.Read(b); err != nil {
				t.Fatalf("after %q: %v", line, err)
			}
			if b[0] == '\n' {
				return string(line)
			}
			line = append(line, b[0])
		}
	}
}

func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b) // never fails, see crypto/rand
	return b
}
