package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
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

// startBackground runs this program with that command and its arguments in a session of its own, and returns what it writes
// to descriptor 3, once it has closed that.
func startBackground(c *cli.Context, command string, args ...string) (said []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start spore %s: %w", command, err)
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
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
		return nil, err
	}
	if said, err = io.ReadAll(io.LimitReader(pr, maxSaid)); err != nil {
		return nil, err
	}
	return said, cmd.Process.Release()
}

// maxSaid bounds what a background process says until it is ready, in bytes.
const maxSaid = 1 << 20

// parentFile is where startBackground listens, in the process that it started.
func parentFile() *os.File {
	unix.CloseOnExec(3)
	return os.NewFile(3, "parent")
}

// settled is how long after it is ready a background process gives back what its start left.
const settled = time.Second

// settle ends what a background process has to say.
func settle(parent *os.File) {
	parent.Close()
	time.AfterFunc(settled, debug.FreeOSMemory)
}
