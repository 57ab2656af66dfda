package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/sandbox"
)

// detach starts a supervisor of its own for the sandbox and prints the id once the command runs.
func detach(c *cli.Context, sb *sandbox.Sandbox, host sandbox.Host) error {
	if err := startSupervisor(c, sb, host); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, sb.Config.ID)
	return err
}

// startSupervisor runs "spore supervise" in the background and waits until it says that the command runs, or
// why it does not.
func startSupervisor(c *cli.Context, sb *sandbox.Sandbox, host sandbox.Host) error {
	err := startBackground(c, "supervise", "--kernel", host.Kernel, sb.Config.ID)
	if errors.Is(err, errSilent) {
		return errors.New("the supervisor ended before its command ran: 'spore inspect " + sb.Ref() + "' has the record")
	}
	return err
}

// errSilent says that a background process ended and did not say why.
var errSilent = errors.New("it ended before it was ready")

// startBackground runs this program with that command and its arguments in a session of its own, and waits until it says
// readyWord on descriptor 3, or what is wrong.
func startBackground(c *cli.Context, command string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	cmd := exec.Command(self, append([]string{"--native", "--state-dir", stateDir(c), "--cache-dir", cacheDir(c), command}, args...)...)
	cmd.Dir = "/" // a background process keeps no directory busy
	// There may be hundreds of them, and they do little: one huge page would be more than all of their heap.
	cmd.Env = append(os.Environ(), "GODEBUG="+strings.TrimPrefix(os.Getenv("GODEBUG")+",disablethp=1", ","))
	cmd.ExtraFiles = []*os.File{pw}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	pw.Close()
	if err != nil {
		return fmt.Errorf("start spore %s: %w", command, err)
	}
	said, err := io.ReadAll(io.LimitReader(pr, 64<<10))
	switch {
	case err != nil:
		return fmt.Errorf("start spore %s: %w", command, err)
	case string(said) == readyWord:
		return cmd.Process.Release()
	case len(said) == 0:
		return fmt.Errorf("start spore %s: %w", command, errSilent)
	}
	return errors.New(strings.TrimSpace(string(said)))
}

// readyWord is what a background process writes to descriptor 3 when it is ready: a supervisor when its command runs, a pool
// when its first shells stand ready. Anything else is an error.
const readyWord = "ready\n"

// settled is how long after it is ready a background process gives back what its start left.
const settled = time.Second

// inBackground is the action of a command that startBackground runs: do calls ready, once, or its error is what is said.
func inBackground(do func(c *cli.Context, ready func()) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		say := os.NewFile(3, "ready")
		unix.CloseOnExec(3)
		err := do(c, func() {
			io.WriteString(say, readyWord)
			say.Close()
			time.AfterFunc(settled, debug.FreeOSMemory)
		})
		if err != nil && say != nil {
			fmt.Fprintln(say, err)
		}
		return err
	}
}

func superviseCommand() *cli.Command {
	return &cli.Command{
		Name: "supervise", Hidden: true, Usage: "own a detached sandbox (used by run -d and start)", ArgsUsage: "ID",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "kernel"}},
		Action: inBackground(supervise),
	}
}

// supervise owns the sandbox until its command has ended. Its streams are the log and whoever attaches.
func supervise(c *cli.Context, ready func()) error {
	sb, err := find(c)
	if err != nil {
		return err
	}
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	// A session of its own is not hung up with the terminal; what else would end it goes to the command.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	running := false
	outcome, err := sb.Supervise(context.WithoutCancel(c.Context), host, sandbox.Streams{Signals: signals}, func() {
		running = true
		ready()
	})
	if err == nil && !running {
		err = errors.New(outcome.String())
	}
	return err
}
