package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Hooks are programs of the image that want to know when their machine is saved or continues as another: executable files
// in these directories below hooksDir, run by name, one after the other, as root. One that fails or takes too long is an error: what
// cannot make itself another must not run as a copy.
const (
	hooksDir       = "/etc/spore/hooks"
	beforeSnapshot = "before-snapshot"
	afterRestore   = "after-restore"
	hookLimit      = 10 * time.Second // for each
	hooksLimit     = 40 * time.Second // for all of a directory; less than the host waits for an answer
	maxHooks       = 64
)

// runHooks runs the programs of one directory, which need not be there.
func (a *server) runHooks(kind string) error {
	dir := filepath.Join(a.hooks, kind)
	entries, err := os.ReadDir(dir) // by name
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) > maxHooks {
		return fmt.Errorf("%s: %d hooks, at most %d", dir, len(entries), maxHooks)
	}
	until := time.Now().Add(hooksLimit)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			continue
		}
		if err := a.runHook(path, min(hookLimit, time.Until(until))); err != nil {
			return &agent.Failure{Text: fmt.Sprintf("hook %s: %v", path, err)}
		}
	}
	return nil
}

func (a *server) runHook(path string, limit time.Duration) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, end, err := a.reaper.start(path, []string{path}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + defaultPath},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	select {
	case e := <-end:
		if e.status.Signaled() {
			return fmt.Errorf("ended by signal %d", e.status.Signal())
		}
		if code := e.status.ExitStatus(); code != 0 {
			return fmt.Errorf("ended with code %d", code)
		}
		return nil
	case <-time.After(limit):
		_ = a.reaper.signal(pid, unix.SIGKILL) // it may just have ended
		<-end
		return fmt.Errorf("not done within %s", limit.Round(time.Second))
	}
}
