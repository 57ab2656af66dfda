package mediator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/cleanup"
	"spore/internal/rights"
	"spore/jailer"
	"spore/network/api"
)

// Config says how a spore-net is started. Nothing in it depends on the sandbox but NetNS, so it may be started ahead.
type Config struct {
	Exe     string         // path of spore-net
	NetNS   string         // path of the network namespace to dial from; "" is the caller's
	ID      string         // what the jail's identity is chosen by: the sandbox's or the attachment's id
	Cgroup  *os.File       // cgroup v2 directory that it is born into; nil is the caller's, if Without has jailer.Cgroup
	Without []jailer.Layer // layers of the jail that may be missing
}

// Waiting is a spore-net without a configuration. It takes no memory to speak of. The process that launched it may hand it to another
// one. Configure or Close ends it, once. The zero value is of no use; methods are for one goroutine.
type Waiting struct {
	Handle
	inmate *inmate
	config *os.File // our end of the socket that brings the configuration
	said   *os.File // standard error
	log    *os.File
	logIn  *os.File // what it will log to
}

// Handle is what another process must be told of a waiting spore-net beside its files.
type Handle struct {
	PID     int            `json:"pid"`
	Missing []jailer.Layer `json:"missing,omitempty"` // that its jail lacks
}

// HandedFiles is how many files a waiting spore-net is handed over by.
const HandedFiles = 5

// Launch starts a spore-net that waits for its configuration.
func Launch(ctx context.Context, c Config) (_ *Waiting, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	exe, err := os.Open(c.Exe)
	if err != nil {
		return nil, fmt.Errorf("start spore-net: %w", err)
	}
	defer exe.Close()
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start spore-net: %w", err), undo.Run())
		}
	}()
	w := &Waiting{}
	var theirs, saidIn *os.File
	if w.config, theirs, err = rights.Pair(unix.SOCK_STREAM); err != nil {
		return nil, err
	}
	undo.Push(w.config.Close)
	defer theirs.Close()
	if w.said, saidIn, err = os.Pipe(); err != nil {
		return nil, err
	}
	undo.Push(w.said.Close)
	defer saidIn.Close()
	if w.log, w.logIn, err = os.Pipe(); err != nil {
		return nil, err
	}
	undo.Push(w.log.Close)
	undo.Push(w.logIn.Close)
	p, err := jail(c, exe, theirs, saidIn)
	if err != nil {
		return nil, err
	}
	undo.Release()
	w.Handle, w.inmate = Handle{p.Pid, p.Missing}, born(p)
	return w, nil
}

// Files are what it is handed over by, in the order of Adopt. They stay its own.
func (w *Waiting) Files() []*os.File {
	return []*os.File{w.config, w.said, w.log, w.logIn, w.inmate.pidFD}
}

// Adopt is for a process that was handed a waiting spore-net by its parent, which still waits for it to end. The files are those
// of Files, and Adopt's from then on.
func Adopt(h Handle, files []*os.File) (*Waiting, error) {
	if len(files) != HandedFiles {
		return nil, errors.Join(fmt.Errorf("adopt spore-net: %d files, not %d", len(files), HandedFiles), closeAll(files))
	}
	return &Waiting{Handle: h, config: files[0], said: files[1], log: files[2], logIn: files[3], inmate: adopt(files[4])}, nil
}

// Configure gives it its configuration and returns when it is ready for the guest. network's version and all its File fields are set
// here; zero addresses, MACs and MTU become the defaults of package api. What it logs goes to log; nil is silent. An error that the user can
// mend (a rule, a secret) says so, and nothing is left of the process then.
func (w *Waiting) Configure(ctx context.Context, log *slog.Logger, network api.Config, f Files) (*Process, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Process{Handle: w.Handle, inmate: w.inmate, said: &tail{}, done: make(chan struct{})}
	p.work.Go(func() { p.said.read(w.said) })
	p.work.Go(func() { relay(log, w.log) })
	go p.wait()
	err := p.configure(ctx, w.config, w.logIn, network, f)
	err = errors.Join(err, w.config.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure spore-net: %w", err), p.Close())
	}
	return p, nil
}

// Ended is closed when the process is gone.
func (w *Waiting) Ended() <-chan struct{} { return w.inmate.ended }

// Forget closes this process's files of it: it has been handed over, or ends.
func (w *Waiting) Forget() error { return closeAll(w.Files()) }

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Close ends it unused, and waits for it.
func (w *Waiting) Close() error {
	err := w.config.Close()
	w.inmate.endSoon()
	return errors.Join(err, closeAll(w.Files()[1:]))
}

// inmate is the process, seen by its parent or by another.
type inmate struct {
	pidFD *os.File
	ended chan struct{}    // closed when it is gone; state is then final
	state *os.ProcessState // how it ended, if this process is its parent
}

// born is for its parent.
func born(p *jailer.Process) *inmate {
	i := &inmate{pidFD: os.NewFile(uintptr(p.PidFD), "process"), ended: make(chan struct{})}
	go func() {
		defer close(i.ended)
		i.state, _ = p.Wait() // that of a child fails only if somebody else has waited for it: then nothing is known
	}()
	return i
}

// adopt is for any other process.
func adopt(pidFD *os.File) *inmate {
	i := &inmate{pidFD: pidFD, ended: make(chan struct{})}
	go func() {
		defer close(i.ended)
		jailer.AwaitEnd(int(pidFD.Fd()))
	}()
	return i
}

// endSoon waits for the end of a process that was told to, and kills it after a while.
func (i *inmate) endSoon() {
	select {
	case <-i.ended:
	case <-time.After(stopGrace):
		_ = unix.PidfdSendSignal(int(i.pidFD.Fd()), unix.SIGKILL, nil, 0) // it has just ended if this fails
		<-i.ended
	}
}

// verdict is what is wrong with how it ended; nil if nothing is. wanted says whether it was told to end, said what it wrote to standard error.
func (i *inmate) verdict(wanted bool, said string) error {
	switch {
	case i.state == nil && wanted && said == "", i.state != nil && i.state.Success():
		return nil
	case i.state == nil:
		return fmt.Errorf("spore-net ended%s", said)
	case wanted && i.state.ExitCode() <= 0: // what we kill, we know of
		return nil
	}
	return fmt.Errorf("spore-net ended: %v%s", i.state, said)
}
