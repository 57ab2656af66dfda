// Package e2e tries Spore as a user would: the built binaries, a real kernel, a real guest. It runs where
// guests run, which is what "make test" sees to.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spore/internal/testenv"
)

// image and devImage are made by scripts/image.sh.
const (
	image    = "debian:12"
	devImage = "debian:12-dev"
)

// commandLimit ends any command of a test: far more than it needs on a slow, loaded machine.
const commandLimit = 20 * time.Minute

// guests is the need for a machine that runs Linux guests, and for the built binaries.
var guests = testenv.Need{Name: "guest", Probe: func() error {
	if _, err := os.Stat(binary("spore")); err != nil {
		return fmt.Errorf("run make build: %w", err)
	}
	var out bytes.Buffer
	cmd := exec.Command(binary("spore"), "--native", "doctor")
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("spore doctor: %w\n%s", err, out.String())
	}
	return nil
}}

// binary is a file in the project's bin directory.
func binary(name string) string {
	dir := os.Getenv("SPORE_BIN")
	if dir == "" {
		wd, _ := os.Getwd()
		dir = filepath.Join(wd, "..", "..", "bin")
	}
	return filepath.Join(dir, name)
}

// user is one user of Spore, with a state directory of their own.
type user struct {
	t     *testing.T
	state string
}

func newUser(t *testing.T) *user {
	testenv.Require(t, guests)
	u := &user{t: t, state: t.TempDir()}
	t.Cleanup(func() {
		ids := strings.Fields(u.run("ls", "--all", "--quiet").stdout)
		if len(ids) > 0 {
			u.run(append([]string{"rm", "--force"}, ids...)...)
		}
	})
	return u
}

// result is what a command of Spore gave back.
type result struct {
	stdout, stderr string
	code           int
}

func (u *user) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, binary("spore"), append([]string{"--native", "--state-dir", u.state}, args...)...)
	cmd.WaitDelay = time.Minute
	return cmd
}

// run runs spore with those arguments and an empty standard input.
func (u *user) run(args ...string) result { return u.feed("", args...) }

// feed runs spore with that standard input.
func (u *user) feed(stdin string, args ...string) result {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := u.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		u.t.Fatalf("spore %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// want fails the test unless the result is that code and standard output.
func (r result) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("code %d, stdout %q; want %d, %q\nstderr: %s", r.code, clip(r.stdout), code, stdout, clip(r.stderr))
	}
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:2000] + "…"
	}
	return s
}

// outcome is the part of the JSON result that tests look at.
type outcome struct {
	Outcome  string `json:"outcome"`
	ExitCode int    `json:"exit_code"`
	Signal   string `json:"signal"`
	Detail   string `json:"detail"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
}

// outcomeOf runs a command with --json and returns its result.
func (u *user) outcomeOf(args ...string) outcome {
	u.t.Helper()
	r := u.run(append([]string{"run", "--json"}, args...)...)
	var o outcome
	if err := json.Unmarshal([]byte(r.stdout), &o); err != nil {
		u.t.Fatalf("spore run --json %s: %v\nstdout: %s\nstderr: %s", strings.Join(args, " "), err, clip(r.stdout), clip(r.stderr))
	}
	if o.ExitCode != r.code {
		u.t.Errorf("JSON says exit code %d, the process %d", o.ExitCode, r.code)
	}
	return o
}

func TestRun(t *testing.T) {
	u := newUser(t)
	u.run("run", image, "--", "echo", "hello").want(t, 0, "hello\n")
	u.run("run", image, "echo", "-n", "no dashes").want(t, 0, "no dashes")
	u.feed("to upper\n", "run", "-i", image, "--", "tr", "a-z", "A-Z").want(t, 0, "TO UPPER\n")
	u.run("run", "-e", "A=1", "-w", "/tmp", image, "--", "sh", "-c", "echo $A; pwd; id -u").want(t, 0, "1\n/tmp\n65534\n")
	u.run("run", "-u", "0", "--hostname", "box", image, "--", "sh", "-c", "id -u; hostname").want(t, 0, "0\nbox\n")
	u.run("run", "--entrypoint", "/bin/echo", image, "--", "x").want(t, 0, "x\n")
	if r := u.run("run", image, "--", "sh", "-c", "echo out; echo err >&2; exit 3"); r.code != 3 || r.stdout != "out\n" || !strings.Contains(r.stderr, "err\n") {
		t.Errorf("streams are mixed up: %+v", r)
	}
	if left := u.run("ls", "-aq").stdout; left != "" {
		t.Errorf("unnamed foreground runs left %q behind", left)
	}
}

func TestOutcomes(t *testing.T) {
	u := newUser(t)
	for _, c := range []struct {
		name, want string
		code       int
		args       []string
	}{
		{"exit code", "exited", 42, []string{image, "--", "sh", "-c", "exit 42"}},
		{"not found", "exited", 127, []string{image, "--", "/no/such/program"}},
		{"cannot invoke", "exited", 126, []string{image, "--", "/etc/passwd"}},
		{"signal", "signalled", 137, []string{image, "--", "sh", "-c", "kill -KILL $$"}},
		{"timeout", "timeout", 124, []string{"--timeout", "3s", image, "--", "sh", "-c", "while :; do :; done"}},
		{"memory hog", "oom", 137, []string{"--memory", "128m", image, "--", "python3", "-c", "b = bytearray()\nwhile True: b += bytes(1 << 20)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := &user{t, u.state}
			if o := u.outcomeOf(c.args...); o.Outcome != c.want || o.ExitCode != c.code {
				t.Errorf("outcome %s, code %d (%s); want %s, %d\n%s", o.Outcome, o.ExitCode, o.Detail, c.want, c.code, clip(o.Stderr))
			}
		})
	}
	t.Run("fork bomb", func(t *testing.T) {
		u := &user{t, u.state}
		o := u.outcomeOf("--pids", "64", "--timeout", "60s", image, "--", "python3", "-c", "import os\nwhile True: os.fork()")
		if o.Outcome != "pids" {
			t.Errorf("outcome %s (%s), want pids\n%s", o.Outcome, o.Detail, clip(o.Stderr))
		}
	})
	t.Run("disk filler", func(t *testing.T) {
		u := &user{t, u.state}
		o := u.outcomeOf("-u", "0", "--disk", "32m", image, "--", "sh", "-c", "dd if=/dev/zero of=/var/fill bs=1M count=200")
		if o.Outcome != "disk-full" || o.ExitCode == 0 {
			t.Errorf("outcome %s, code %d (%s), want disk-full\n%s", o.Outcome, o.ExitCode, o.Detail, clip(o.Stderr))
		}
	})
}

// TestNothingHangs holds the promises about floods and open streams.
func TestNothingHangs(t *testing.T) {
	u := newUser(t)
	t.Run("flood", func(t *testing.T) {
		u := &user{t, u.state}
		r := u.run("run", image, "--", "sh", "-c", "yes | head -c 33554432")
		if r.code != 0 || len(r.stdout) != 32<<20 {
			t.Errorf("code %d, %d bytes; want 0, %d", r.code, len(r.stdout), 32<<20)
		}
	})
	t.Run("open stdin", func(t *testing.T) {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pr.Close()
		defer pw.Close() // only after the command has ended
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		cmd := u.command(ctx, "run", "-i", image, "--", "true")
		cmd.Stdin = pr
		if err := cmd.Run(); err != nil {
			t.Errorf("run -i with an open stdin: %v", err)
		}
	})
	t.Run("left behind", func(t *testing.T) {
		u := &user{t, u.state}
		u.run("run", image, "--", "sh", "-c", "sleep 1000 & echo started").want(t, 0, "started\n")
	})
}
