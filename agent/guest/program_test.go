package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// runProgram runs a program that comes with its request, and returns what it printed or why it did not start.
func runProgram(t *testing.T, path, content string, args ...string) (string, *agent.Failure) {
	t.Helper()
	dial, _ := guest(t)
	e := sh("")
	e.Args, e.Program = append([]string{path}, args...), int64(len(content))
	var out bytes.Buffer
	p, err := agent.Start(t.Context(), dial, e, agent.Streams{Stdin: strings.NewReader("input"), Stdout: &out, Program: strings.NewReader(content)})
	var f *agent.Failure
	if errors.As(err, &f) {
		return "", f
	}
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	return out.String(), nil
}

func TestProgram(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	path, kept := filepath.Join(dir, "program"), filepath.Join(dir, "kept")
	const script = "#!/bin/sh\necho $0 $@; cat\n"
	if out, f := runProgram(t, path, script, "a", "b c"); f != nil || out != path+" a b c\ninput" {
		t.Errorf("%q, %v", out, f)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != programMode {
		t.Errorf("%v, %v", st, err)
	}
	// What an earlier program has left there is replaced, and not followed.
	if err := errors.Join(os.WriteFile(kept, []byte("kept"), 0o600), os.Remove(path), os.Symlink(kept, path)); err != nil {
		t.Fatal(err)
	}
	if _, f := runProgram(t, path, script); f != nil {
		t.Error(f)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "kept" {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
	big := script + "exit 0\n" + strings.Repeat("x", 3*agent.MaxStream+1)
	if out, f := runProgram(t, path, big); f != nil || out != path+"\ninput" {
		t.Errorf("%q, %v", out, f)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != int64(len(big)) {
		t.Errorf("%v, %v", st, err)
	}
}

func TestProgramThatDoesNotStart(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/directory", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, content string
		code          int
		want          string
	}{
		"no #! line":       {dir + "/p", "echo hello\n", 126, "no #! line"},
		"broken ELF":       {dir + "/p", "\x7fELF and no more", 126, "not whole"},
		"no interpreter":   {dir + "/p", "#! /no/such/sh -x\n", 127, `its interpreter "/no/such/sh"`},
		"carriage return":  {dir + "/p", "#!/bin/sh\r\necho\n", 127, `"/bin/sh\r"`},
		"no directory":     {dir + "/none/p", "#!/bin/sh\n", 126, "no such file or directory"},
		"is a directory":   {dir + "/directory", "#!/bin/sh\n", 126, "is a directory"},
		"no absolute path": {"p", "#!/bin/sh\n", 126, "no such program"},
	} {
		t.Run(name, func(t *testing.T) {
			_, f := runProgram(t, c.path, c.content)
			if f == nil || f.Code != c.code || !strings.Contains(f.Text, c.want) {
				t.Errorf("%+v, want %d, %s", f, c.code, c.want)
			}
		})
	}
}

// A program that does not come whole is not run, and nothing is left of it.
func TestHalfAProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	for name, c := range map[string]struct {
		size   int64
		frames []byte
	}{
		"ends early":                   {100, []byte("\x0c\x03\x00\x00\x00#!/")},
		"other frames":                 {100, []byte("\x07\x03\x00\x00\x00#!/")},
		"says it ends":                 {100, []byte("\x0c\x03\x00\x00\x00#!/\x08\x00\x00\x00\x00")},
		"larger than a program may be": {agent.MaxProgram + 1, nil},
		"negative":                     {-1, nil},
	} {
		e := agent.Exec{Args: []string{path}, Program: c.size, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
		var f *agent.Failure
		if err := takeProgram(e, agent.NewReader(bytes.NewReader(c.frames))); !errors.As(err, &f) || f.Code != codeCannotInvoke {
			t.Errorf("%s: %v", name, err)
		}
		if err := unix.Access(path, unix.F_OK); err != unix.ENOENT {
			t.Errorf("%s: something is left, %v", name, err)
		}
	}
}
