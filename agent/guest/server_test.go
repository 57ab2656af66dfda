package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/testenv"
)

// oneReaper waits for all children of this test binary: two would take each other's.
var oneReaper = sync.OnceValue(newReaper)

// guest is a server without a machine: its processes run here, without cgroups.
func guest(t testing.TB) (agent.Dial, *server) {
	t.Helper()
	a := &server{reaper: oneReaper(), off: func() {}}
	return func(context.Context, uint32) (agent.Conn, error) {
		ours, theirs, err := pair()
		if err == nil {
			go a.serve(theirs)
		}
		return ours, err
	}, a
}

// pair is a connection as over vsock: the host's end and the guest's, a file on the poller.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "host")
	defer f.Close()
	ours, err := net.FileConn(f)
	return ours, os.NewFile(uintptr(fds[1]), "guest"), err
}

// sh is a shell command run as whoever runs the test.
func sh(script string) agent.Exec {
	e := agent.Exec{
		Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "GREETING=hello"}, Dir: "/",
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
	}
	for _, g := range must(os.Getgroups()) {
		e.Groups = append(e.Groups, uint32(g))
	}
	return e
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// run runs a process to its end.
func run(t *testing.T, dial agent.Dial, e agent.Exec, stdin io.Reader) (agent.Exit, string, string) {
	t.Helper()
	var out, errs bytes.Buffer
	p, err := agent.Start(t.Context(), dial, e, agent.Streams{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return exit, out.String(), errs.String()
}

// needsRoot skips where credentials cannot be set for a child.
func needsRoot(t *testing.T) {
	t.Helper()
	testenv.Require(t, testenv.Root)
}

func TestExec(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	for name, c := range map[string]struct {
		script, stdin, out, errs string
		code, signal             int
	}{
		"silence":   {script: "true"},
		"code":      {script: "exit 42", code: 42},
		"signal":    {script: "kill -TERM $$", signal: 15},
		"streams":   {script: "echo out; echo err >&2", out: "out\n", errs: "err\n"},
		"stdin":     {script: "cat; echo end", stdin: "line", out: "lineend\n"},
		"no stdin":  {script: "cat; echo end", out: "end\n"},
		"env":       {script: "echo $GREETING; pwd", out: "hello\n/\n"},
		"clean fds": {script: "ls /proc/self/fd | wc -l", out: fmt.Sprintln(4 + inheritable())},
		"session":   {script: "test $(cut -d' ' -f6 /proc/$$/stat) = $$"},
		"blocking":  {script: "cat /proc/self/fdinfo/0 | grep -c 'flags:.*4...$' || true", stdin: "", out: "0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var in io.Reader
			if c.stdin != "" {
				in = strings.NewReader(c.stdin)
			}
			exit, out, errs := run(t, dial, sh(c.script), in)
			if exit.Code != c.code || exit.Signal != c.signal || out != c.out || errs != c.errs {
				t.Errorf("%+v, %q, %q", exit, out, errs)
			}
		})
	}
}

// inheritable counts the descriptors beyond the standard ones that whoever runs the test gave to all its children.
func inheritable() (n int) {
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			n++
		}
	}
	return n
}

func TestExecThatCannotStart(t *testing.T) {
	needsRoot(t)
	dial, a := guest(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		dir  string
		code int
	}{
		"unknown name":        {[]string{"no-such-program"}, "/", 127},
		"unknown path":        {[]string{"/no/such/program"}, "/", 127},
		"file as directory":   {[]string{plain + "/x"}, "/", 127},
		"unknown interpreter": {[]string{script}, "/", 127},
		"not executable":      {[]string{plain}, "/", 126},
		"a directory":         {[]string{"/tmp"}, "/", 126},
		"empty name":          {[]string{""}, "/", 127},
		"no directory":        {[]string{"true"}, "/no/such/dir", 126},
	} {
		_, err := agent.Start(t.Context(), dial, agent.Exec{Args: c.args, Dir: c.dir, UID: 0, GID: 0}, agent.Streams{})
		var f *agent.Failure
		if !errors.As(err, &f) || f.Code != c.code {
			t.Errorf("%s: %v (%+v), want code %d", name, err, f, c.code)
		}
	}
	if len(a.running) != 0 || len(a.reaper.waiting) != 0 {
		t.Errorf("%d processes are left", len(a.running))
	}
}

// An output flood arrives in full and in order, through a reader that takes its time.
func TestExecFlood(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	_, out, errs := run(t, dial, sh("seq 200000; seq 1000 >&2"), nil)
	if n := strings.Count(out, "\n"); n != 200000 || !strings.HasSuffix(out, "\n200000\n") || strings.Count(errs, "\n") != 1000 {
		t.Errorf("%d lines of output, %d of errors", n, strings.Count(errs, "\n"))
	}
}

// Input that never ends, and input that nobody reads, hold nothing up.
func TestExecOpenStdin(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	never, w := io.Pipe()
	defer w.Close()
	if exit, out, _ := run(t, dial, sh("echo done; exit 3"), never); exit.Code != 3 || out != "done\n" {
		t.Errorf("%+v, %q", exit, out)
	}
	if exit, _, _ := run(t, dial, sh("exit 4"), zeros{}); exit.Code != 4 {
		t.Errorf("%+v", exit)
	}
	if _, out, _ := run(t, dial, sh("exec <&-; echo closed"), io.LimitReader(zeros{}, 1<<20)); out != "closed\n" {
		t.Errorf("%q", out)
	}
	if _, out, _ := run(t, dial, sh("wc -c"), io.LimitReader(zeros{}, 4<<20)); strings.TrimSpace(out) != "4194304" {
		t.Errorf("%q", out)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What a process leaves running holds its pipes, not us.
func TestExecLeavesOthers(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	exit, out, _ := run(t, dial, sh("sleep 300 & echo $!; exit 5"), nil)
	if exit.Code != 5 {
		t.Errorf("%+v", exit)
	}
	pid := must(strconv.Atoi(strings.TrimSpace(out)))
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Errorf("what was left running is gone: %v", err)
	}
}

// A reader that is slower than any limit still gets all that was written.
func TestExecSlowReader(t *testing.T) {
	needsRoot(t)
	dial, a := guest(t)
	release := make(chan struct{})
	var got int
	slow := writerFunc(func(p []byte) (int, error) {
		<-release
		got += len(p)
		return len(p), nil
	})
	p, err := agent.Start(t.Context(), dial, sh("sleep 300 & head -c 100000 /dev/zero"), agent.Streams{Stdout: slow})
	if err != nil {
		t.Fatal(err)
	}
	// 100000 bytes are more than the pipe holds and less than the pipe and the socket do: the
	// process may end, and the drain limit pass, before anything is taken.
	poll(t, "end of the process", func() bool {
		a.reaper.mu.Lock()
		defer a.reaper.mu.Unlock()
		return len(a.reaper.waiting) == 0
	})
	time.AfterFunc(2*drainLimit, func() { close(release) })
	if _, err := p.Wait(); err != nil || got != 100000 {
		t.Errorf("%d bytes, %v", got, err)
	}
	killOrphans(t, "sleep 300")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// poll waits for something that comes soon.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

// killOrphans ends what a test left running on purpose.
func killOrphans(t *testing.T, cmdline string) {
	t.Helper()
	for _, dir := range must(filepath.Glob("/proc/[0-9]*")) {
		b, _ := os.ReadFile(dir + "/cmdline")
		stat, _ := os.ReadFile(dir + "/stat")
		mine := strings.Contains(string(stat), fmt.Sprintf(" %d ", os.Getpid())) || strings.Contains(string(stat), ") S 1 ")
		if mine && strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ") == cmdline {
			if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}

// A host that goes away takes the process with it: one that waits, one that writes, one that does not read.
func TestExecLosesHost(t *testing.T) {
	needsRoot(t)
	for name, c := range map[string]struct {
		script string
		stdin  io.Reader
	}{
		"waits":         {"echo up; exec sleep 300", nil},
		"writes":        {"echo up; exec cat /dev/zero", nil},
		"does not read": {"echo up; exec sleep 300", zeros{}},
	} {
		t.Run(name, func(t *testing.T) {
			dial, a := guest(t)
			ctx, cancel := context.WithCancel(t.Context())
			up := make(chan struct{}, 1)
			out := writerFunc(func(p []byte) (int, error) {
				select {
				case up <- struct{}{}:
				default:
				}
				return len(p), nil
			})
			p, err := agent.Start(ctx, dial, sh(c.script), agent.Streams{Stdin: c.stdin, Stdout: out})
			if err != nil {
				t.Fatal(err)
			}
			<-up
			cancel()
			if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			poll(t, "end of the process", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return len(a.running) == 0
			})
		})
	}
}

func TestSignal(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	up := make(chan struct{}, 1)
	var out bytes.Buffer
	p, err := agent.Start(t.Context(), dial, sh("trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.05; done"),
		agent.Streams{Stdout: writerFunc(func(b []byte) (int, error) {
			out.Write(b)
			select {
			case up <- struct{}{}:
			default:
			}
			return len(b), nil
		})})
	if err != nil {
		t.Fatal(err)
	}
	<-up
	if err := p.Signal(t.Context(), 65); err == nil {
		t.Error("there is no signal 65")
	}
	if err := p.Signal(t.Context(), int(unix.SIGUSR1)); err != nil {
		t.Error(err)
	}
	exit, err := p.Wait()
	if err != nil || exit.Code != 9 || out.String() != "up\ncaught\n" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if err := p.Signal(t.Context(), int(unix.SIGUSR1)); err == nil {
		t.Error("a process that has ended was signalled")
	}
}

// Many processes at once, orphans among them: each end reaches who waits for it.
func TestManyProcesses(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			exit, out, _ := run(t, dial, sh(fmt.Sprintf("(true &) ; (exit 1) ; echo %d; exit %d", i, i)), nil)
			if exit.Code != i || out != fmt.Sprintln(i) {
				t.Errorf("%d: %+v, %q", i, exit, out)
			}
		})
	}
	all.Wait()
}

func TestExecAsOtherUser(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	e := sh("id -u; id -g; id -G; grep CapEff /proc/self/status")
	e.UID, e.GID = uint32(must(strconv.Atoi(nobody.Uid))), uint32(must(strconv.Atoi(nobody.Gid)))
	e.Groups = []uint32{e.GID, 7}
	_, out, _ := run(t, dial, e, nil)
	if want := fmt.Sprintf("%d\n%d\n%d 7\nCapEff:\t0000000000000000\n", e.UID, e.GID, e.GID); out != want {
		t.Errorf("%q, want %q", out, want)
	}
}
