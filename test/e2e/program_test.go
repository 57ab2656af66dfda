package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	u := newUser(t)
	file := filepath.Join(t.TempDir(), "program")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("#!/bin/sh\necho $0 $@; id -u; stat -c '%a %u' $0; cat\n")
	const said = "/tmp/program a b c\n65534\n755 65534\n"
	u.feed("input", "run", "-i", "--program", file, image, "--", "a", "b c").want(t, 0, said+"input")
	u.feed("#!/bin/sh\necho $1; cat; exit 7\n", "run", "--program", "-", image, "--", "x").want(t, 7, "x\n")
	u.run("run", "--read-only", "-u", "0", "--program", file, image).want(t, 0, "/tmp/program\n0\n755 0\n")
	if r := u.run("ls", "-aq"); r.stdout != "" {
		t.Errorf("runs left %q behind", r.stdout)
	}

	// A static binary, larger than a few frames.
	binary, err := os.ReadFile(binary("spore-probe"))
	if err != nil {
		t.Fatal(err)
	}
	write(string(binary))
	if r := u.run("run", "--program", file, image); r.code == 126 || r.code == 127 || r.code == 125 {
		t.Errorf("a binary does not run: %+v", r)
	}

	for name, c := range map[string]struct {
		content string
		code    int
		want    string
	}{
		"no #! line":     {"echo hello\n", 126, "no #! line"},
		"no interpreter": {"#!/no/such/sh\n", 127, "/no/such/sh"},
		"empty":          {"", 125, "is empty"},
	} {
		write(c.content)
		if r := u.run("run", "--program", file, image); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: %+v, want %d and %s", name, r, c.code, c.want)
		}
	}
}

// TestProgramOfANamedSandbox: a detached supervisor has the program of the record, at each start.
func TestProgramOfANamedSandbox(t *testing.T) {
	u := newUser(t)
	u.feed("#!/bin/sh\necho ran; echo overwritten >$0\n", "run", "-d", "--name", "p", "--program", "-", image)
	u.run("wait", "p").want(t, 0, "0\n")
	u.run("start", "p").want(t, 0, "p\n")
	u.run("wait", "p").want(t, 0, "0\n")
	u.run("logs", "p").want(t, 0, "ran\nran\n")
	u.run("clone", "p", "q")
	u.run("start", "q") // a copy has the disk, and what was made of the program there
	if r := u.run("wait", "q"); r.stdout != "126\n" {
		t.Errorf("the copy: %+v", r)
	}
}

// TestRehearsalLeavesNothing: what was started in a guest before it became a template is not there in those that wake from it.
func TestRehearsalLeavesNothing(t *testing.T) {
	u := newUser(t)
	const look = `ls -A /tmp /var/tmp /dev/shm; grep -c rehearsal /proc/mounts; ls -A /dev | grep rehearsal; for p in /proc/[0-9]*/exe; do l=$(readlink $p) && echo $l; done; true`
	first := u.run("run", "-u", "0", image, "--", "sh", "-c", look)
	woke := u.run("run", "-u", "0", image, "--", "sh", "-c", look)
	const nothing = "/dev/shm:\n\n/tmp:\n\n/var/tmp:\n0\n/init\n/usr/bin/dash\n"
	first.want(t, 0, nothing)
	woke.want(t, 0, nothing)
}
