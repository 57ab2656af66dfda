package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Exit codes of a process that could not be started, as a shell has them.
const (
	codeCannotInvoke = 126
	codeNotFound     = 127
)

// drainLimit is how long output may still come after a process has ended. What it left running holds the pipes
// open; nobody waits for that.
const drainLimit = 200 * time.Millisecond

// killedDrainLimit is the same when everything has been killed: the pipes end as soon as the kernel is through.
const killedDrainLimit = 10 * time.Second

// exec runs one process from its start to its exit. root is its root directory, "" ours. gone tells whether the host is.
func (a *server) exec(e agent.Exec, root string, gone func() bool, r *agent.Reader, w *agent.Writer) error {
	n := a.last.Add(1)
	group, err := a.groups.add(fmt.Sprintf("exec-%d", n), e.Main)
	if err != nil {
		return err
	}
	defer a.groups.drop(group)
	age := a.copies.Load()
	p := &process{link: newLink(w, gone, age, a.lostToCopy), root: root, main: e.Main, group: group, reap: a.reaper, done: make(chan struct{})}
	defer close(p.done)
	if err := p.open(e); err != nil {
		return err
	}
	defer p.closeAll()
	began := time.Now()
	e.Env = a.withTrust(e.Env)
	end, err := p.start(e)
	if err != nil {
		return startFailure(e.Args[0], err)
	}
	a.add(n, p)
	defer a.forget(n)
	if err := w.SendJSON(agent.FrameStarted, agent.Started{ID: n}); err != nil {
		p.kill()
	}
	go p.listen(r, age)
	p.copyOutput()
	stop := func() {}
	if e.Main {
		stop = p.guard()
	}
	ended := <-end
	p.ended.Store(true)
	stop()
	took := time.Since(began)
	if e.Main {
		p.kill()
		p.drain(killedDrainLimit)
	} else {
		p.drain(drainLimit)
	}
	return p.link.SendJSON(agent.FrameExit, p.exit(ended, took))
}

// startFailure says why a program did not start, with the code a shell would give.
func startFailure(name string, err error) error {
	code := codeCannotInvoke
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = codeNotFound
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = whyNot(pe.Path, pe.Err)
	}
	return &agent.Failure{Text: fmt.Sprintf("exec %s: %v", name, err), Code: code}
}

// process is a running process and our ends of its streams.
type process struct {
	link  *link
	root  string // its root directory; "" is ours
	main  bool   // the sandbox's command
	group *cgroup
	reap  *reaper
	ended atomic.Bool   // its own program has
	done  chan struct{} // closed when its end has been reported
	pid   int

	theirs  []*os.File // descriptors 0, 1, 2 of the process; closed here after the start
	stdin   *os.File   // nil when it is empty
	outputs []output
	tty     *os.File // the terminal's master, also stdin and the only output

	copying sync.WaitGroup
}

// kill ends the process and all that it started.
func (p *process) kill() {
	_ = p.reap.signal(p.pid, unix.SIGKILL) // errNoProcess: only what it left behind is still there
	p.group.kill()
}

// abandon ends a process whose host has gone, and all that it started. What one that has ended by itself left running stays, as it
// does when its host has heard of the end.
func (p *process) abandon() {
	if !p.ended.Load() {
		p.kill()
	}
}

// output is a stream from the process and the frames that it becomes.
type output struct {
	file  *os.File
	frame agent.FrameType
}

// open makes the streams.
func (p *process) open(e agent.Exec) (err error) {
	defer func() {
		if err != nil {
			p.closeAll()
		}
	}()
	if e.TTY != nil {
		return p.openTerminal(*e.TTY, int(e.UID))
	}
	in, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	if e.Stdin {
		in.Close()
		if in, p.stdin, err = os.Pipe(); err != nil {
			return err
		}
	}
	p.theirs = append(p.theirs, in)
	for _, t := range []agent.FrameType{agent.FrameStdout, agent.FrameStderr} {
		ours, theirs, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, theirs)
		p.outputs = append(p.outputs, output{ours, t})
	}
	return nil
}

// start forks. The child is born in its cgroup, its own session and, given one, with its terminal.
func (p *process) start(e agent.Exec) (<-chan ended, error) {
	path, err := resolve(e.Args[0], e.Dir, e.Env)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(e.Dir); err != nil || !st.IsDir() {
		return nil, &agent.Failure{Text: fmt.Sprintf("working directory %s: no such directory", e.Dir), Code: codeCannotInvoke}
	}
	attr := &syscall.ProcAttr{
		Dir: e.Dir, Env: e.Env,
		Sys: &syscall.SysProcAttr{
			Chroot: p.root, Setsid: true, Setctty: p.tty != nil, Ctty: 0,
			Credential: &syscall.Credential{Uid: e.UID, Gid: e.GID, Groups: e.Groups},
		},
	}
	if p.group.dir != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(p.group.dir.Fd())
	}
	for _, f := range p.theirs {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, end, err := p.reap.start(path, e.Args, attr)
	if err != nil {
		return nil, &os.PathError{Op: "exec", Path: path, Err: err}
	}
	p.pid = pid
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
	return end, nil
}

// exit puts together what is known of the end.
func (p *process) exit(e ended, d time.Duration) agent.Exit {
	x := agent.Exit{
		Duration: d,
		User:     time.Duration(e.usage.Utime.Nano()),
		System:   time.Duration(e.usage.Stime.Nano()),
		MaxRSS:   e.usage.Maxrss << 10,
		OOMKills: p.group.event("memory.events", "oom_kill"),
		PidsMax:  p.group.refusals(),
		DiskFull: diskFull(),
	}
	if e.status.Signaled() {
		x.Signal = int(e.status.Signal())
	} else {
		x.Code = e.status.ExitStatus()
	}
	return x
}

func (p *process) closeAll() {
	for _, f := range p.theirs {
		f.Close()
	}
	for _, o := range p.outputs {
		o.file.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}
