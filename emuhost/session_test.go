package emuhost

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spore/emuhost/frame"
	"spore/emuhost/session"
)

const testTimeout = 5 * time.Minute

// socketPort is a session.Port over a listening socket: the ports of the
// machine without the machine.
type socketPort struct {
	listener net.Listener
	mu       sync.Mutex
	conn     net.Conn
}

func (p *socketPort) Read(b []byte) (int, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = p.listener.Accept(); err != nil {
			return 0, err
		}
		p.mu.Lock()
		p.conn = conn
		p.mu.Unlock()
	}
	n, err := conn.Read(b)
	if n > 0 {
		return n, nil
	}
	p.mu.Lock()
	_ = conn.Close()
	p.conn = nil
	p.mu.Unlock()
	if err != nil {
		err = session.ErrDisconnected
	}
	return 0, err
}

func (p *socketPort) Write(b []byte) (int, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return 0, session.ErrDisconnected
	}
	n, err := conn.Write(b)
	if err != nil {
		err = session.ErrDisconnected
	}
	return n, err
}

// standIn returns a Host whose ports are served by this process: commands run
// on this machine, everything in between is the real thing.
func standIn(t *testing.T) *Host {
	t.Helper()
	h, err := Open(Config{StateDir: t.TempDir(), CacheDir: t.TempDir(), InitBinary: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(h.runDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for i := range Ports + 1 {
		l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/port%d", dir.Fd(), i))
		if err != nil {
			t.Fatal(err)
		}
		s := session.Server{Port: &socketPort{listener: l}}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.Serve() // ends when the listener closes
		}()
		t.Cleanup(func() { _ = l.Close(); <-served })
	}
	return h
}

// outcome is what a command left.
type outcome struct {
	stdout, stderr string
	code           int
}

func sh(t *testing.T, h *Host, script, stdin string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	code, err := h.Run(ctx, Command{
		Args: []string{"/bin/sh", "-c", script}, Env: os.Environ(), Dir: "/",
		Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs,
	})
	if err != nil {
		t.Fatalf("run %q: %v", script, err)
	}
	return outcome{out.String(), errs.String(), code}
}

// testCommands is what every host must do, the stand-in and the real one.
func testCommands(t *testing.T, h *Host) {
	for name, c := range map[string]struct {
		script, stdin string
		want          outcome
	}{
		"streams":       {"echo out; echo err >&2", "", outcome{"out\n", "err\n", 0}},
		"exit code":     {"exit 42", "", outcome{code: 42}},
		"highest code":  {"exit 255", "", outcome{code: 255}},
		"killed":        {"kill -KILL $$", "", outcome{code: 137}},
		"terminated":    {"kill -TERM $$", "", outcome{code: 143}},
		"stdin to end":  {"cat; echo end", "line\n", outcome{"line\nend\n", "", 0}},
		"no stdin":      {"cat", "", outcome{}},
		"stdin ignored": {"exit 5", strings.Repeat("x", 4<<20), outcome{code: 5}},
		"binary":        {`printf '\000\001\377'; cat`, "\x00\xa5\x01\xff", outcome{"\x00\x01\xff\x00\xa5\x01\xff", "", 0}},
		"directory":     {"pwd", "", outcome{"/\n", "", 0}},
		"left behind":   {"sleep 20 & echo done", "", outcome{"done\n", "", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sh(t, h, c.script, c.stdin); got != c.want {
				t.Errorf("got %.500s, want %.500s", fmt.Sprint(got), fmt.Sprint(c.want))
			}
		})
	}
	t.Run("not found", func(t *testing.T) { testStartErrors(t, h) })
	t.Run("signal", func(t *testing.T) { testSignal(t, h) })
	t.Run("client gone", func(t *testing.T) { testClientGone(t, h) })
	t.Run("output closed", func(t *testing.T) { testOutputClosed(t, h) })
	t.Run("terminal", func(t *testing.T) { testTerminal(t, h) })
	t.Run("volume", func(t *testing.T) { testVolume(t, h) })
	t.Run("many at once", func(t *testing.T) { testMany(t, h) })
}

func testStartErrors(t *testing.T, h *Host) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for _, c := range []struct {
		command Command
		code    int
	}{
		{Command{Args: []string{"no-such-program"}, Dir: "/"}, 127},
		{Command{Args: []string{"/no/such/program"}, Dir: "/"}, 127},
		{Command{Args: []string{"/etc/passwd"}, Dir: "/"}, 126},
		{Command{Args: []string{"true"}, Dir: "/no/such/directory"}, 127},
	} {
		var errs bytes.Buffer
		c.command.Stderr = &errs
		code, err := h.Run(ctx, c.command)
		if err != nil || code != c.code || !strings.HasPrefix(errs.String(), "spore host: ") {
			t.Errorf("%v in %s: code %d, %v, %q", c.command.Args, c.command.Dir, code, err, errs.String())
		}
	}
}

// lineWriter tells when something was written.
type lineWriter struct{ lines chan string }

func (w lineWriter) Write(b []byte) (int, error) {
	w.lines <- string(b)
	return len(b), nil
}

func testSignal(t *testing.T, h *Host) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	signals := make(chan os.Signal, 1)
	out := lineWriter{make(chan string, 16)}
	go func() {
		<-out.lines // the trap is set
		signals <- syscall.SIGTERM
	}()
	code, err := h.Run(ctx, Command{
		Args: []string{"sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"},
		Dir:  "/", Stdout: out, Signals: signals,
	})
	if code != 9 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

// testClientGone cancels a command and expects its processes to be gone and
// every port to be usable afterwards.
func testClientGone(t *testing.T, h *Host) {
	mark := fmt.Sprintf("3%09d", os.Getpid())
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		out := lineWriter{make(chan string, 16)}
		go func() {
			<-out.lines
			cancel()
		}()
		code, err := h.Run(ctx, Command{
			Args: []string{"sh", "-c", "echo ready; sleep " + mark + " & sleep " + mark}, Dir: "/", Stdout: out,
		})
		cancel()
		if code != ExitLost || !errors.Is(err, context.Canceled) {
			t.Fatalf("code %d, %v", code, err)
		}
	}
	end := time.Now().Add(testTimeout)
	for sh(t, h, "pgrep -f '^sleep "+mark+"'", "").code == 0 {
		if time.Now().After(end) {
			t.Fatal("processes of gone clients are still there")
		}
		time.Sleep(50 * time.Millisecond)
	}
	for range Ports {
		if got := sh(t, h, "echo again", ""); got.stdout != "again\n" {
			t.Fatalf("afterwards: %+v", got)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func testOutputClosed(t *testing.T, h *Host) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	code, err := h.Run(ctx, Command{Args: []string{"yes"}, Dir: "/", Stdout: brokenWriter{}})
	if want := 128 + int(syscall.SIGPIPE); code != want || err != nil {
		t.Errorf("code %d, %v, want %d", code, err, want)
	}
}

func testTerminal(t *testing.T, h *Host) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	var out bytes.Buffer
	code, err := h.Run(ctx, Command{
		Args: []string{"sh", "-c", "test -t 0 && test -t 1 && test -t 2 && read line && echo got $line && cat"},
		Dir:  "/", Stdin: strings.NewReader("typed\n"), Stdout: &out, TTY: true,
	})
	if code != 0 || err != nil || !strings.Contains(out.String(), "got typed\r\n") {
		t.Errorf("code %d, %v, output %q", code, err, out.String())
	}
}

// testVolume sends much in both directions at once and compares checksums.
func testVolume(t *testing.T, h *Host) {
	const size = 64 << 20
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	sum := sha256.New()
	code, err := h.Run(ctx, Command{
		Args: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}, Dir: "/", Stdout: sum,
	})
	want := sha256.New()
	_, _ = io.CopyN(want, zeros{}, size) // a hash takes all
	if code != 0 || err != nil || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Errorf("out: code %d, %v, checksum %x", code, err, sum.Sum(nil))
	}
	var echo bytes.Buffer
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	code, err = h.Run(ctx, Command{Args: []string{"cat"}, Dir: "/", Stdin: bytes.NewReader(in), Stdout: &echo})
	if code != 0 || err != nil || !bytes.Equal(echo.Bytes(), in) {
		t.Errorf("echo: code %d, %v, %d bytes", code, err, echo.Len())
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// testMany runs more commands at once than there are ports.
func testMany(t *testing.T, h *Host) {
	var all sync.WaitGroup
	for i := range Ports + 4 {
		all.Go(func() {
			want := fmt.Sprintf("%d\n", i)
			if got := sh(t, h, "sleep 0.2; cat", want); got.stdout != want || got.code != 0 {
				t.Errorf("command %d: %+v", i, got)
			}
		})
	}
	all.Wait()
}

func TestCommands(t *testing.T) { testCommands(t, standIn(t)) }

func TestLostHost(t *testing.T) {
	h, err := Open(Config{StateDir: t.TempDir(), CacheDir: t.TempDir(), InitBinary: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := h.Status(t.Context()); err != nil || st.Running {
		t.Errorf("status of a host that never ran: %+v, %v", st, err)
	}
	if code, err := h.Run(t.Context(), Command{Args: []string{"true"}}); code != ExitLost || err == nil {
		t.Errorf("run without a host: code %d, %v", code, err)
	}
	l, err := net.Listen("unix", filepath.Join(h.runDir(), "port1"))
	if err != nil {
		t.Skipf("path too long for a socket: %v", err)
	}
	defer l.Close()
	go func() { // a host that dies after its greeting
		conn, err := l.Accept()
		if err != nil {
			return
		}
		n, err := frame.NewReader(conn).Hunt(nil)
		if err == nil {
			_, _ = conn.Write(frame.AppendHello(nil, n))
		}
		_ = conn.Close()
	}()
	for i := 2; i <= Ports; i++ { // leave only port 1
		lock, err := tryLock(filepath.Join(h.runDir(), fmt.Sprintf("port%d.lock", i)))
		if err != nil || lock == nil {
			t.Fatalf("lock port %d: %v", i, err)
		}
		defer lock.Close()
	}
	if code, err := h.Run(t.Context(), Command{Args: []string{"true"}}); code != ExitLost || !errors.Is(err, ErrLost) {
		t.Errorf("host dies in the middle: code %d, %v", code, err)
	}
}

func TestForwardedSignalsCanBeNotified(t *testing.T) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, ForwardedSignals()...)
	signal.Stop(c)
}
