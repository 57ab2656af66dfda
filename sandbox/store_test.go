package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// valid is a configuration without a fault.
func valid() Config {
	return Config{
		Image: "debian:12", ImagePath: "/image.erofs", Args: []string{"true"}, Dir: "/", CPUs: 1, Memory: DefaultMemory,
		Disk: DefaultDisk, Pids: DefaultPids, Timeout: time.Minute, Root: RootBlock,
	}
}

// emptyLayer stands in for the ext4 file, which no test here looks into.
func emptyLayer(path string) error { return os.WriteFile(path, nil, 0o600) }

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestValidate(t *testing.T) {
	good := valid()
	if err := good.Validate(); err != nil {
		t.Fatalf("a valid configuration is refused: %v", err)
	}
	for want, spoil := range map[string]func(*Config){
		"name":          func(c *Config) { c.Name = "-x" },
		"no command":    func(c *Config) { c.Args = nil },
		"--cpus":        func(c *Config) { c.CPUs = 17 },
		"--memory":      func(c *Config) { c.Memory = 1 << 20 },
		"multiple of 2": func(c *Config) { c.Memory = 128<<20 + 4096 },
		"--disk":        func(c *Config) { c.Disk = 1 },
		"--pids":        func(c *Config) { c.Pids = 0 },
		"--timeout":     func(c *Config) { c.Timeout = -1 },
		"--workdir":     func(c *Config) { c.Dir = "tmp" },
		"--root-device": func(c *Config) { c.Root = "cdrom" },
		"--hostname":    func(c *Config) { c.Hostname = "a b" },
		"--env":         func(c *Config) { c.Env = []string{"=x"} },
		"NUL":           func(c *Config) { c.Args = []string{"a\x00b"} },
	} {
		c := valid()
		spoil(&c)
		if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

func TestCreateFindRemove(t *testing.T) {
	s := newStore(t)
	cfg := valid()
	cfg.Name = "web"
	sb, err := s.Create(cfg, Origin{Writable: emptyLayer})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(cfg, Origin{Writable: emptyLayer}); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "taken") {
		t.Errorf("a name is given twice: %v", err)
	}
	for _, ref := range []string{"web", sb.Config.ID, sb.Config.ID[:5]} {
		if found, err := s.Find(ref); err != nil || found.Config.ID != sb.Config.ID {
			t.Errorf("find %s: %v", ref, err)
		}
	}
	if _, err := s.Find("nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("find nobody: %v", err)
	}
	if st, err := sb.State(); err != nil || st.Status != Created {
		t.Errorf("state %+v, %v", st, err)
	}
	lock, err := sb.hold()
	if err != nil {
		t.Fatal(err)
	}
	var se *StateError
	if err := sb.Remove(); !errors.As(err, &se) {
		t.Errorf("a held sandbox is removed: %v", err)
	}
	lock.Close()
	if err := sb.Remove(); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("%d sandboxes left, %v", len(all), err)
	}
}

func TestFailedLayerLeavesNothing(t *testing.T) {
	s := newStore(t)
	full := errors.New("disk full")
	if _, err := s.Create(valid(), Origin{Writable: func(string) error { return full }}); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != lockFile {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// TestProgramIsKept: the record has the program as it was, and a copy of the record's configuration has none.
func TestProgramIsKept(t *testing.T) {
	s := newStore(t)
	path := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	sb, err := s.Create(valid(), Origin{Writable: emptyLayer, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	f, size, err := sb.openProgram()
	if err != nil || size != 10 || !sb.Config.Program {
		t.Fatalf("%d bytes, %v, %t", size, err, sb.Config.Program)
	}
	f.Close()
	cfg := sb.Config
	cfg.ID = ""
	if copied, err := s.Create(cfg, Origin{Writable: emptyLayer}); err != nil || copied.Config.Program {
		t.Errorf("a copy claims a program: %v", err)
	}
	if err := os.Truncate(sb.path(programFile), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := sb.openProgram(); err == nil {
		t.Error("an empty program is opened")
	}
}

// TestLostSupervisor is a sandbox whose supervisor was killed: nobody holds its lock, and it says it runs.
func TestLostSupervisor(t *testing.T) {
	s := newStore(t)
	sb, err := s.Create(valid(), Origin{Writable: emptyLayer})
	if err != nil {
		t.Fatal(err)
	}
	lock, err := sb.hold()
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.writeState(State{Status: Running, Started: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if st, err := sb.State(); err != nil || st.Status != Running {
		t.Errorf("a held sandbox is %s, %v", st.Status, err)
	}
	lock.Close()
	st, err := sb.State()
	if err != nil || st.Status != Stopped || st.Outcome.Kind != HostError || st.Outcome.ExitCode != CodeSpore {
		t.Errorf("an abandoned sandbox is %+v, %v", st, err)
	}
	if _, err := os.Stat(sb.path(writableFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the writable layer of an ephemeral sandbox is left: %v", err)
	}
}

func TestSweep(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"0123456789ab.new", "0123456789ab.gone"} {
		if err := os.MkdirAll(filepath.Join(s.dir, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sb, err := s.Create(valid(), Origin{Writable: emptyLayer})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].Config.ID != sb.Config.ID {
		t.Errorf("after the sweep: %d sandboxes, %v", len(all), err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*.*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestTransitions(t *testing.T) {
	legal := map[[2]Status]bool{
		{Created, Starting}: true, {Starting, Running}: true, {Starting, Stopped}: true, {Running, Stopped}: true, {Stopped, Starting}: true,
	}
	for _, from := range []Status{Created, Starting, Running, Stopped} {
		for _, to := range []Status{Created, Starting, Running, Stopped} {
			moved := func() (ok bool) {
				defer func() { ok = recover() == nil }()
				s := State{Status: from}
				s.move(to)
				return
			}()
			if moved != legal[[2]Status{from, to}] {
				t.Errorf("%s → %s: moved %v", from, to, moved)
			}
		}
	}
}

func TestOutputLogIsBounded(t *testing.T) {
	s := newStore(t)
	sb, err := s.Create(valid(), Origin{Writable: emptyLayer})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openOutputLog(sb.path(logFile))
	if err != nil {
		t.Fatal(err)
	}
	out := l.stream("stdout")
	piece := make([]byte, 1<<20)
	for range 40 {
		if n, err := out.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	l.stream("stderr").Write([]byte("the end"))
	l.Close()
	var size int64
	for _, name := range []string{logFile, logFile + ".1"} {
		if st, err := os.Stat(sb.path(name)); err == nil {
			size += st.Size()
		}
	}
	if size > 3*maxLogFile {
		t.Errorf("the log takes %d bytes", size)
	}
	entries, err := sb.Logs()
	if err != nil || len(entries) == 0 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if last := entries[len(entries)-1]; last.Stream != "stderr" || string(last.Data) != "the end" {
		t.Errorf("the last entry is %s %q", last.Stream, last.Data)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	kept := tail{limit: 10}
	for _, s := range []string{"0123", "456789", "abcdef", strings.Repeat("x", 100) + "end"} {
		kept.Write([]byte(s))
	}
	if got := kept.String(); got != "xxxxxxxend" {
		t.Errorf("kept %q", got)
	}
}

func TestOpenRegular(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if f, err := openRegular(file, os.O_RDONLY); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	for _, path := range []string{link, dir, "/dev/null"} { // BLK-05
		if f, err := openRegular(path, os.O_RDONLY); !errors.Is(err, ErrNotRegular) {
			t.Errorf("BLK-05: open %s: %v", path, err)
			f.Close()
		}
	}
}
