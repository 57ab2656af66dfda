package guest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spore/agent"
)

func TestTerminal(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	e := sh("stty size; tty; read line; echo got $line; stty size; cat; echo end")
	e.TTY = &agent.Winsize{Rows: 25, Cols: 81}
	in, feed := io.Pipe()
	var out bytes.Buffer
	lines := make(chan string, 64)
	p, err := agent.Start(t.Context(), dial, e, agent.Streams{Stdin: in, Stdout: writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				out.WriteString(line)
				return len(b), nil
			}
			lines <- strings.TrimRight(line, "\r\n")
		}
	})})
	if err != nil {
		t.Fatal(err)
	}
	want := func(s string) {
		t.Helper()
		if got := <-lines; !strings.Contains(got, s) {
			t.Errorf("%q, want %q", got, s)
		}
	}
	want("25 81")
	want("/dev/pts/")
	if err := p.Resize(t.Context(), agent.Winsize{Rows: 30, Cols: 90}); err != nil {
		t.Error(err)
	}
	io.WriteString(feed, "typed\n")
	want("typed") // the echo
	want("got typed")
	want("30 90")
	feed.Close()
	want("end")
	if exit, err := p.Wait(); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestFilesInAndOut(t *testing.T) {
	needsRoot(t)
	dial, _ := guest(t)
	base := t.TempDir()
	src := filepath.Join(base, "src")
	if err := errors.Join(os.MkdirAll(src+"/sub", 0o755), os.WriteFile(src+"/sub/f", bytes.Repeat([]byte("ab"), 1<<20), 0o640),
		os.Symlink("sub/f", src+"/l"), os.Mkdir(base+"/in", 0o755), os.Mkdir(base+"/out", 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := agent.Put(t.Context(), dial, src, base+"/in", agent.Owner{UID: 7, GID: 8}); err != nil {
		t.Fatal(err)
	}
	if err := agent.Get(t.Context(), dial, base+"/in/src", base+"/out/"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(base + "/out/src/l")
	if err != nil || len(got) != 2<<20 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var f *agent.Failure
	if err := agent.Get(t.Context(), dial, base+"/none", base+"/out"); !errors.As(err, &f) || !strings.Contains(f.Text, "no such file") {
		t.Error(err)
	}
	if err := agent.Put(t.Context(), dial, src, base+"/none/", agent.Owner{}); !errors.As(err, &f) {
		t.Error(err)
	}
	if err := agent.Put(t.Context(), dial, base+"/none", base+"/in", agent.Owner{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestStatsAndPing(t *testing.T) {
	dial, _ := guest(t)
	if err := agent.Ping(t.Context(), dial); err != nil {
		t.Error(err)
	}
	s, err := agent.GetStats(t.Context(), dial)
	if err != nil || s.MemoryTotal <= 0 || s.DiskTotal <= 0 || s.Load == "" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestPowerOff(t *testing.T) {
	dial, a := guest(t)
	off := make(chan struct{})
	a.off = func() { close(off) }
	if err := agent.PowerOff(t.Context(), dial); err != nil {
		t.Error(err)
	}
	<-off
}

// Requests that make no sense are answered, and the server goes on.
func TestOddRequests(t *testing.T) {
	dial, _ := guest(t)
	for _, body := range []string{
		`{}`, `{"op":"exec"}`, `{"op":"exec","exec":{}}`, `{"op":"signal","id":1,"signal":9}`, `{"op":"signal","signal":-1}`,
		`{"op":"resize","id":99,"size":{}}`, `{"op":"resize"}`, `{"op":"resumed"}`, `{"op":"no such"}`, `{"op":"get","path":"\u0000"}`,
	} {
		c, err := dial(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := agent.NewWriter(c).Send(agent.FrameRequest, []byte(body)); err != nil {
			t.Fatal(err)
		}
		var f *agent.Failure
		if err := agent.NewReader(c).Expect(agent.FrameDone, nil); !errors.As(err, &f) {
			t.Errorf("%s: %v", body, err)
		}
		c.Close()
	}
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/tool", nil, 0o755), os.WriteFile(dir+"/text", nil, 0o644), os.Mkdir(dir+"/sub", 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		path string // PATH
		want string
		err  error
	}{
		{"tool", dir, dir + "/tool", nil},
		{"tool", "/none:" + dir, dir + "/tool", nil},
		{"tool", "", dir + "/tool", nil}, // an empty element is the working directory
		{"./tool", "", dir + "/./tool", nil},
		{dir + "/tool", "", dir + "/tool", nil},
		{"text", dir, "", os.ErrPermission},
		{"sub", dir, "", nil},
		{"none", dir, "", os.ErrNotExist},
	} {
		got, err := resolve(c.name, dir, []string{"PATH=" + c.path})
		if got != c.want || c.err != nil && !errors.Is(err, c.err) || c.want == "" && err == nil {
			t.Errorf("%s in %q: %q, %v", c.name, c.path, got, err)
		}
	}
}

// FuzzInput is the guest's side of FuzzFrames: a process's input and a tar stream, from any bytes.
func FuzzInput(f *testing.F) {
	f.Add([]byte("\x07\x03\x00\x00\x00abc\x08\x00\x00\x00\x00"))
	f.Add([]byte("\x0c\x03\x00\x00\x00abc\x08\x00\x00\x00\x00"))
	f.Add([]byte("\x07\xff\xff\xff\xff"))
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &process{stdin: null, tty: null, group: &cgroup{}, reap: &reaper{},
			link: newLink(nil, func() bool { return false }, 0, func(uint64) bool { return false })}
		p.listen(agent.NewReader(bytes.NewReader(b)), 0)
		if n, err := io.Copy(io.Discard, &tarStream{r: agent.NewReader(bytes.NewReader(b))}); n > int64(len(b)) {
			t.Errorf("%d bytes of %d, %v", n, len(b), err)
		}
	})
}
