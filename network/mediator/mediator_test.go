package mediator_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/jailer"
	"spore/network/api"
	"spore/network/mediator"
	"spore/network/policy"
	"spore/network/stack/stacktest"
)

const patience = 2 * time.Minute

var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "spore-net-test"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// binary is spore-net, made once for all tests, or the one that SPORE_NET names.
var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("SPORE_NET"); path != "" {
		return path, nil
	}
	path := filepath.Join(scratch, "spore-net")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "spore/cmd/spore-net")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return path, err
})

// place is a network namespace with an address of its own on its loopback.
type place struct {
	path string
	do   chan func()
}

const server = "192.0.2.10"

// newPlace makes a network namespace, which lasts as long as the test.
func newPlace(t testing.TB) *place {
	t.Helper()
	testenv.Require(t, testenv.Root)
	p := &place{do: make(chan func())}
	made := make(chan error)
	var work sync.WaitGroup
	work.Go(func() {
		runtime.LockOSThread() // the thread ends with the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			p.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
			err = dress()
		}
		made <- err
		for f := range p.do {
			f()
		}
	})
	t.Cleanup(func() { close(p.do); work.Wait() })
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	return p
}

func dress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range []string{server + "/32", "2001:db8::10/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(lo)
}

// in runs f in the namespace.
func (p *place) in(f func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); f() }
	<-done
}

// serve runs f for each TCP connection to a port there.
func (p *place) serve(t testing.TB, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	var l net.Listener
	var err error
	p.in(func() { l, err = net.Listen("tcp", server+":0") })
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { defer c.Close(); f(c) })
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// network is a configuration with rules, and the addresses of stacktest.
func network(rules policy.Source) api.Config {
	return api.Config{Sandbox: "test", Rules: rules, GuestMAC: stacktest.GuestMAC, GatewayMAC: stacktest.GatewayMAC,
		Guest: []netip.Prefix{stacktest.Guest4, stacktest.Guest6}, Gateways: []netip.Addr{stacktest.Gateway4, stacktest.Gateway6}}
}

// frames makes the pair that frames go through, whose other end f has then. Both are closed with the test.
func frames(t testing.TB, f *mediator.Files) (machine *os.File) {
	t.Helper()
	machine, forwarder, err := mediator.Frames()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Close(); forwarder.Close() })
	f.Frames = forwarder
	return machine
}

// launched is a spore-net that has been launched and configured.
func launched(ctx context.Context, c mediator.Config, network api.Config, f mediator.Files) (*mediator.Process, error) {
	w, err := mediator.Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	return w.Configure(ctx, nil, network, f)
}

func start(t testing.TB, p *place, c api.Config, f mediator.Files) (*mediator.Process, *stacktest.Guest) {
	t.Helper()
	exe, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	machine := frames(t, &f)
	m, err := launched(ctx, mediator.Config{Exe: exe, NetNS: p.path, ID: "0123456789ab", Without: jailer.Optional()}, c, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	fd, err := unix.Dup(int(machine.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	return m, stacktest.NewGuest(t, os.NewFile(uintptr(fd), "guest"), stacktest.MTU)
}

var allowed = policy.Source{Allow: []string{server + "/32", "2001:db8::10/128"}}

func TestWholeLife(t *testing.T) {
	p := newPlace(t)
	audit, err := os.Create(filepath.Join(t.TempDir(), "audit"))
	if err != nil {
		t.Fatal(err)
	}
	at := p.serve(t, func(c net.Conn) { io.Copy(c, c) })
	m, guest := start(t, p, network(allowed), mediator.Files{Audit: audit})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := guest.DialTCP(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("x"), 10<<20)
	go func() { c.Write(sent); c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || len(got) != len(sent) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	c.Close()
	ping(t, guest)
	e, err := m.Explain(ctx, "tcp://8.8.8.8:443")
	if err != nil || e.Verdict.Action != policy.Deny {
		t.Errorf("explanation %+v, %v", e, err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Error(err)
	}
	s, err := m.Stats(ctx)
	for err == nil && s.Open > 0 { // flows that are dropped end by and by
		s, err = m.Stats(ctx)
	}
	if err != nil || s.Sent < 10<<20 || s.Received < 10<<20 {
		t.Errorf("figures %+v, %v", s, err)
	}
	t.Logf("%+v", s)
	t.Logf("%s", status(t, m.PID))
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(audit.Name())
	if err != nil || !strings.Contains(string(text), `"destination":"`+at.String()+`"`) {
		t.Errorf("audit %q, %v", text, err)
	}
}

// status is what the kernel says of the process's memory.
func status(t testing.TB, pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		for _, key := range []string{"VmRSS", "RssAnon", "RssFile", "Threads", "Seccomp:", "NoNewPrivs"} {
			if strings.HasPrefix(line, key) {
				out = append(out, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return strings.Join(out, ", ")
}

// ping sends one echo request, and waits for its reply.
func ping(t testing.TB, guest *stacktest.Guest) {
	t.Helper()
	reply := make(chan []byte, 10)
	guest.Tap(func(f []byte) {
		if p := f[stacktest.Header:]; len(p) > 28 && p[9] == 1 && p[20] == 0 {
			reply <- p
		}
	})
	defer guest.Tap(nil)
	packet := append(guest.Head(0x0800), 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0)
	packet = append(packet, stacktest.Guest4.Addr().AsSlice()...)
	packet = append(packet, netip.MustParseAddr(server).AsSlice()...)
	packet = append(packet, 8, 0, 0, 0, 0x12, 0x34, 0, 7, 'p', 'i', 'n', 'g')
	guest.Send(t, packet)
	select {
	case p := <-reply:
		if string(p[24:32]) != "\x12\x34\x00\x07ping" {
			t.Errorf("reply %x", p)
		}
	case <-time.After(10 * time.Second):
		t.Error("no reply to an echo request")
	}
}

func TestBadRuleIsReported(t *testing.T) {
	p := newPlace(t)
	exe, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var files mediator.Files
	frames(t, &files)
	_, err = launched(ctx, mediator.Config{Exe: exe, NetNS: p.path, ID: "x", Without: jailer.Optional()}, network(policy.Source{Allow: []string{"not a rule!"}}), files)
	if err == nil || !strings.Contains(err.Error(), "not a rule!") {
		t.Errorf("start: %v", err)
	}
}

// TestLaunchedAhead closes one that was never configured, and measures one that was.
func TestLaunchedAhead(t *testing.T) {
	p := newPlace(t)
	exe, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 10 {
		began := time.Now()
		w, err := mediator.Launch(ctx, mediator.Config{Exe: exe, NetNS: p.path, ID: "x", Without: jailer.Optional()})
		if err != nil {
			t.Fatal(err)
		}
		launched := time.Since(began)
		began = time.Now()
		var files mediator.Files
		frames(t, &files)
		m, err := w.Configure(ctx, nil, network(allowed), files)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("launched in %v, configured in %v; %s", launched, time.Since(began), status(t, m.PID))
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if w, err = mediator.Launch(ctx, mediator.Config{Exe: exe, NetNS: p.path, ID: "x", Without: jailer.Optional()}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHandedOver has a process configured by who is not its parent, as far as that can be told within one process.
func TestHandedOver(t *testing.T) {
	p := newPlace(t)
	exe, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, configure := range []bool{true, false} {
		parent, err := mediator.Launch(ctx, mediator.Config{Exe: exe, NetNS: p.path, ID: "x", Without: jailer.Optional()})
		if err != nil {
			t.Fatal(err)
		}
		var list []*os.File
		for _, f := range parent.Files() {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, os.NewFile(uintptr(fd), "handed"))
		}
		w, err := mediator.Adopt(parent.Handle, list)
		if err != nil {
			t.Fatal(err)
		}
		if err := parent.Forget(); err != nil {
			t.Error(err)
		}
		if configure {
			var files mediator.Files
			frames(t, &files)
			m, err := w.Configure(ctx, nil, network(allowed), files)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Stats(ctx); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		} else if err := w.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-parent.Ended():
		case <-ctx.Done():
			t.Fatal("its parent has not heard that it ended")
		}
	}
	if _, err := mediator.Adopt(mediator.Handle{}, nil); err == nil {
		t.Error("adopted without files")
	}
}
