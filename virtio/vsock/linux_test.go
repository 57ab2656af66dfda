package vsock_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guest"
	"spore/internal/testenv"
	"spore/sandbox/broker"
	"spore/vmm/api"
)

// The tests of this file run the real driver: this test's own binary is the first program of a Linux guest.

func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guestMain()
	}
	os.Exit(m.Run())
}

// Ports of the two halves.
const (
	readyPort   = 1000 // the host's: the guest says that it listens
	closedPort  = 1001 // the host's: refused
	servicePort = 2000 // the guest's
)

// Commands of a connection to servicePort, each followed by a count of bytes.
const (
	cmdEcho = 'e' // send back until EOF
	cmdSink = 's' // take until EOF, then answer with the number of bytes
	cmdGive = 'g' // send count bytes, then close
	cmdIdle = 'i' // take nothing until a second connection comes with count, then echo
)

// Needs of these tests.
var (
	linuxGuest = testenv.Need{Name: "linux-guest", Probe: func() error {
		b, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return err
		}
		if !bytes.Contains(b, []byte(" svm")) && !bytes.Contains(b, []byte(" vmx")) {
			return errors.New("processor has neither AMD-V nor VT-x")
		}
		return nil
	}}
	binaries = testenv.Need{Name: "binaries", Probe: func() error {
		for _, f := range []string{vmmPath(), kernelPath()} {
			if _, err := os.Stat(f); err != nil {
				return err
			}
		}
		return nil
	}}
	static = testenv.Need{Name: "static-test", Probe: func() error {
		f, err := elf.Open("/proc/self/exe")
		if err != nil {
			return err
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				return errors.New("this test is linked dynamically; build it with CGO_ENABLED=0")
			}
		}
		return nil
	}}
)

func vmmPath() string    { return cmp.Or(os.Getenv("SPORE_VMM"), "../../bin/spore-vmm") }
func kernelPath() string { return cmp.Or(os.Getenv("SPORE_KERNEL"), "../../bin/vmlinux") }

// initramfs is this binary as /init.
func initramfs(t testing.TB) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	entry := func(name string, mode, major, minor int, body []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			b.Len(), mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(body)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("dev", 0o40755, 0, 0, nil)
	entry("dev/console", 0o20600, 5, 1, nil)
	entry("init", 0o100755, 0, 0, self)
	entry("TRAILER!!!", 0, 0, 0, nil)
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// boot starts a Linux guest and waits until it listens.
func boot(t testing.TB) *broker.Broker {
	t.Helper()
	testenv.Require(t, testenv.KVM, linuxGuest, binaries, static)
	began := time.Now()
	var inherit []*os.File
	add := func(f *os.File, err error) api.File {
		if err != nil {
			t.Fatal(err)
		}
		inherit = append(inherit, f)
		return api.File(len(inherit) - 2) // the configuration comes first
	}
	sockets := func(kind int) (ours, theirs *os.File) {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	}
	configRead, configWrite, err := os.Pipe()
	add(configRead, err)
	cfg := api.Config{Version: api.Version, ID: "vsock", VCPUs: 1, Memory: 256 << 20, Log: api.NoFile}
	add(os.OpenFile("/dev/kvm", os.O_RDWR, 0)) // api.KVMFile
	cfg.Entropy = add(os.Open("/dev/urandom"))
	cfg.Boot = api.Boot{Kernel: add(os.Open(kernelPath())), Initrd: add(os.Open(initramfs(t))), Cmdline: guest.Cmdline() + os.Getenv("SPORE_CMDLINE")}
	control, theirs := sockets(unix.SOCK_STREAM)
	cfg.Control = add(theirs, nil)
	sock, theirs := sockets(unix.SOCK_SEQPACKET)
	cfg.Vsock = &api.Vsock{CID: 3, Broker: add(theirs, nil)}
	console, in, err := os.Pipe()
	cfg.Console.Output, cfg.Console.Input = add(in, err), api.NoFile
	cfg.Console.UART = os.Getenv("SPORE_CMDLINE") != "" // such as " console=ttyS0 8250.nr_uarts=1 loglevel=7"
	cmd := exec.Command(vmmPath(), "-unjailed")
	cmd.ExtraFiles, cmd.Stderr = inherit, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := broker.New(sock)
	said := make(chan string, 1)
	go func() {
		p, _ := io.ReadAll(console)
		said <- string(p)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		b.Close()
		control.Close()
	})
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		api.Send(control, &api.Request{ID: 1, Op: api.OpStats})
		for m := (api.Message{}); api.Receive(control, &m) == nil; m = (api.Message{}) {
			if m.Reply != nil {
				t.Logf("counters %v", m.Reply.Counters["vsock"])
				return
			}
		}
	})
	for _, f := range inherit {
		f.Close()
	}
	l, err := b.Listen(readyPort)
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Send(configWrite, &cfg); err != nil {
		t.Fatal(err)
	}
	configWrite.Close()
	stuck := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	c, err := l.Accept()
	if err != nil {
		for m := (api.Message{}); api.Receive(control, &m) == nil; m = (api.Message{}) {
			t.Logf("event %+v", m.Event)
		}
		t.Fatalf("the VMM has ended: %v; console:\n%s", err, <-said)
	}
	defer c.Close()
	words, err := io.ReadAll(c)
	if err != nil || string(words) != "refused: connection reset by peer" {
		t.Fatalf("the guest says %q, %v", words, err)
	}
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	return b
}

// command opens a connection to the guest's service.
func command(t testing.TB, b *broker.Broker, cmd byte, count uint64) *net.UnixConn {
	t.Helper()
	c, err := b.Dial(t.Context(), servicePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	if _, err := c.Write(binary.LittleEndian.AppendUint64([]byte{cmd}, count)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func TestLinuxGuest(t *testing.T) {
	b := boot(t)
	t.Run("echo on many connections", func(t *testing.T) {
		const conns, each = 20, 300 << 10
		var wg sync.WaitGroup
		for i := range conns {
			c := command(t, b, cmdEcho, 0)
			wg.Go(func() {
				io.CopyN(struct{ io.Writer }{c}, rand.NewChaCha8([32]byte{byte(i)}), each)
				c.CloseWrite()
			})
			wg.Go(func() {
				got, want := sha256.New(), sha256.New()
				n, err := io.Copy(got, c)
				io.CopyN(want, rand.NewChaCha8([32]byte{byte(i)}), each)
				if err != nil || n != each || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
					t.Errorf("connection %d: %d bytes of %d, %v, or others", i, n, each, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("a port where nobody listens", func(t *testing.T) {
		c, err := b.Dial(t.Context(), servicePort+1)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	})
	t.Run("the host closes first", func(t *testing.T) {
		for range 300 { // more than the limit on connections
			c := command(t, b, cmdEcho, 0)
			c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // it is accepted: the guest's backlog is short
				t.Fatal(err)
			}
			c.Close()
		}
	})
	t.Run("the guest closes first", func(t *testing.T) {
		for range 300 {
			c := command(t, b, cmdGive, 100)
			if p, err := io.ReadAll(c); err != nil || len(p) != 100 {
				t.Fatalf("read %d bytes, %v", len(p), err)
			}
			c.Close()
		}
	})
	t.Run("a guest that does not read holds up nobody", func(t *testing.T) {
		slow := command(t, b, cmdIdle, 0)
		const each = 4 << 20
		go func() {
			io.CopyN(struct{ io.Writer }{slow}, rand.NewChaCha8([32]byte{}), each)
			slow.CloseWrite()
		}()
		time.Sleep(100 * time.Millisecond) // for it to be stuck; it need not be
		c := command(t, b, cmdEcho, 0)
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		command(t, b, cmdIdle, 1) // lets the first go on
		if n, err := io.Copy(io.Discard, slow); err != nil || n != each {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	})
	figures(t, b)
}

// figures logs what the connections do. They are no test: the machine decides.
func figures(t *testing.T, b *broker.Broker) {
	const size = 32 << 20
	block := make([]byte, 64<<10)
	begin := time.Now()
	c := command(t, b, cmdSink, 0)
	for range size / len(block) {
		if _, err := c.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	c.CloseWrite()
	if p, err := io.ReadAll(c); err != nil || len(p) != 8 || binary.LittleEndian.Uint64(p) != size {
		t.Fatalf("the guest took %x, %v", p, err)
	}
	t.Logf("host to guest %.1f MB/s", size/1e6/time.Since(begin).Seconds())
	begin = time.Now()
	if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{command(t, b, cmdGive, size)}, make([]byte, 256<<10)); err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	t.Logf("guest to host %.1f MB/s", size/1e6/time.Since(begin).Seconds())
	c = command(t, b, cmdEcho, 0)
	var rounds []time.Duration
	for i := range 500 {
		begin := time.Now()
		c.Write(block[:1])
		if _, err := io.ReadFull(c, block[:1]); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		rounds = append(rounds, time.Since(begin))
	}
	slices.Sort(rounds)
	t.Logf("1-byte round trip p50 %v p99 %v", rounds[len(rounds)/2], rounds[len(rounds)*99/100])
}

// guestMain is /init. It does not return.
func guestMain() {
	fail := func(what string, err error) {
		fmt.Fprintf(os.Stderr, "guest: %s: %v\n", what, err)
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	dial := func(port uint32) (int, error) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		return fd, unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
	}
	l, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(l, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: servicePort})
	}
	if err == nil {
		err = unix.Listen(l, 64)
	}
	if err != nil {
		fail("listen", err)
	}
	_, refused := dial(closedPort)
	ready, err := dial(readyPort)
	if err != nil {
		fail("dial", err)
	}
	unix.Write(ready, fmt.Appendf(nil, "refused: %v", refused))
	unix.Close(ready)
	again := make(chan struct{})
	for {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			fail("accept", err)
		}
		go serve(os.NewFile(uintptr(fd), "vsock"), again)
	}
}

// serve does what the connection's first bytes say.
func serve(f *os.File, again chan struct{}) {
	defer f.Close()
	var head [9]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return
	}
	count := binary.LittleEndian.Uint64(head[1:])
	buf := make([]byte, 64<<10)
	plain := struct{ io.ReadWriter }{f} // no splice
	switch head[0] {
	case cmdIdle:
		if count == 1 {
			again <- struct{}{}
			return
		}
		<-again
		fallthrough
	case cmdEcho:
		io.CopyBuffer(plain, plain, buf)
	case cmdSink:
		n, _ := io.CopyBuffer(io.Discard, plain, buf)
		f.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	case cmdGive:
		for n := 0; count > 0; count -= uint64(n) {
			var err error
			if n, err = f.Write(buf[:min(count, uint64(len(buf)))]); err != nil {
				return
			}
		}
	}
}
