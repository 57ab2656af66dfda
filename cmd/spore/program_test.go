package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
)

// withRun runs "spore run" with those arguments, and do in place of its action.
func withRun(do func(c *cli.Context) error, args ...string) error {
	app := newApp()
	app.ErrWriter = io.Discard
	for _, command := range app.Commands {
		if command.Name == "run" {
			command.Action = do
		}
	}
	return app.Run(append([]string{"spore"}, args...))
}

func TestProgramIsRefusedBeforeAnythingStarts(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p")
	if err := errors.Join(os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600), os.WriteFile(dir+"/empty", nil, 0o600),
		os.WriteFile(dir+"/large", nil, 0o600), os.Truncate(dir+"/large", sandbox.MaxProgram+1)); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"no such file":                {"--program", dir + "/none"},
		"is a directory":              {"--program", dir},
		"is empty":                    {"--program", dir + "/empty"},
		"/dev/null is empty":          {"--program", "/dev/null"},
		"more than 256 MiB":           {"--program", dir + "/large"},
		"/dev/zero has more than 256": {"--program", "/dev/zero"},
		"name a file":                 {"--program", ""},
		"leave out -i and -t":         {"--program", "-", "-i"},
		"the guest's is empty":        {"--program", "-", "-t"},
		"--entrypoint":                {"--program", file, "--entrypoint", "/bin/sh"},
		"cannot be both":              {"--program", "-", "--network", "nat", "--secret", "A=-@example.org"},
	} {
		err := withRun(func(c *cli.Context) error {
			f, err := openProgram(c)
			if f != nil {
				f.Close()
			}
			return err
		}, append(append([]string{"run"}, args...), "image")...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
}

func TestProgram(t *testing.T) {
	const script = "#!/bin/sh\necho\n"
	dir := t.TempDir()
	file := filepath.Join(dir, "p")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	if _, err := pw.WriteString(script); err != nil || pw.Close() != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	os.Stdin = pr
	defer func() { os.Stdin = stdin }()
	for name, args := range map[string][]string{
		"file":           {"run", "-i", "-t", "--program", file},
		"standard input": {"run", "--program", "-"},
		"carried":        {"--carried-program", file, "run", "--program", "-"},
	} {
		err := withRun(func(c *cli.Context) error {
			f, err := openProgram(c)
			if err != nil {
				return err
			}
			defer f.Close()
			if b, err := io.ReadAll(f); err != nil || string(b) != script {
				t.Errorf("%s: %q, %v", name, b, err)
			}
			if argv := strings.Join(commandArgs(c), " "); argv != sandbox.ProgramPath+" a b" {
				t.Errorf("%s: it runs %q", name, argv)
			}
			return nil
		}, append(args, "image", "--", "a", "b")...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := withRun(func(c *cli.Context) error {
		if f, err := openProgram(c); f != nil || err != nil {
			t.Errorf("no program: %v, %v", f, err)
		}
		return nil
	}, "run", "image"); err != nil {
		t.Error(err)
	}
}

// TestProgramIsCarried: what goes to the emulated host is a copy in the directory that both see, for as long as it is needed.
func TestProgramIsCarried(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	file := filepath.Join(t.TempDir(), "p")
	content := bytes.Repeat([]byte("#!/bin/sh\n"), 10000)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	err := withRun(func(c *cli.Context) error {
		args, drop, err := carryProgram(c)
		if err != nil {
			return err
		}
		if len(args) != 2 || args[0] != "--carried-program" || !strings.HasPrefix(args[1], os.Getenv("XDG_STATE_HOME")) {
			t.Fatalf("arguments %q", args)
		}
		if b, err := os.ReadFile(args[1]); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if err := drop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(args[1]); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the copy stays: %v", err)
		}
		return nil
	}, "run", "--program", file, "image")
	if err != nil {
		t.Error(err)
	}
}
