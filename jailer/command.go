package jailer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// cloneflags are the namespaces the process is born into. There is no moment at which it runs outside them.
const cloneflags = unix.CLONE_NEWUSER | // one mapped id: root inside, nobody outside, until the plan drops that too
	unix.CLONE_NEWNS | // its own mounts, soon just an empty root
	unix.CLONE_NEWPID | // sees and signals only itself; its death kills whatever it could have left
	unix.CLONE_NEWNET | // no interface, not even a loopback that is up
	unix.CLONE_NEWIPC | // no shared memory or queues of others
	unix.CLONE_NEWUTS | // hostname tells nothing
	unix.CLONE_NEWCGROUP // cgroup paths tell nothing; the time namespace has its own rules (fill, clone)

// namespaces are cloneflags for a jail of c.
func namespaces(c *Config) uint64 {
	if c.Network {
		return cloneflags &^ unix.CLONE_NEWNET
	}
	return cloneflags
}

// Process is a process in its jail.
type Process struct {
	*os.Process
	PidFD   int     // for signals and waits without a race. The caller closes it
	Missing []Layer // what this jail lacks
}

// Start makes a process that is born in its namespaces, with one mapped id and exactly the descriptors of cfg, and puts
// it into its jail before the first instruction of its program. The caller waits for it. An error names the call that
// failed; nothing is left then. The caller is dumpable afterwards, whatever it was.
func Start(cfg Config) (*Process, error) { return start(cfg, nil) }

// start is Start; inspect sees the plan before the child does, nil does not.
func start(cfg Config, inspect func(*plan)) (_ *Process, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	o, missing, err := look(&cfg)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := cfg.Stderr
	if stderr == nil {
		stderr = null
	}
	files := append([]*os.File{null, null, stderr}, cfg.Files...)
	failureOut, failureIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failureOut.Close()
	defer failureIn.Close()
	var sync [2]int // not os.Pipe: its ends do not block, and the child's must
	if err := unix.Pipe2(sync[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer func() { unix.Close(sync[0]); unix.Close(sync[1]) }()
	own := copies{above: failureFile + 1} // out of the way of all that the child will have
	defer own.close()
	p, err := newPlan()
	if err != nil {
		return nil, err
	}
	defer p.free()
	d, err := own.plan(p, &cfg, o, files, descriptors{sync: sync[0], syncIn: sync[1]}, failureIn)
	if err != nil {
		return nil, err
	}
	if inspect != nil {
		inspect(p)
	}
	pid, pidFD, errno := clone(namespaces(&cfg), &cfg, o, p, d.failure)
	if errno != 0 {
		return nil, fmt.Errorf("start jailed process: %w", os.NewSyscallError("clone3", errno))
	}
	own.close() // the child has its own; ours would keep the failure pipe open
	failureIn.Close()
	process, err := p.follow(pid, cfg, sync[1], failureOut)
	if err != nil {
		reap(pid, pidFD)
		return nil, fmt.Errorf("start jailed process: %w", err)
	}
	return &Process{Process: process, PidFD: pidFD, Missing: missing}, nil
}

// follow lets the child go on, and returns when it runs its program.
func (p *plan) follow(pid int, cfg Config, sync int, failure io.Reader) (*os.Process, error) {
	err := release(pid, cfg, sync)
	if err == nil {
		err = p.outcome(failure)
	}
	if err = errors.Join(err, stayDumpable()); err != nil {
		return nil, err
	}
	return os.FindProcess(pid)
}

// stayDumpable undoes what the child's change of identity did to the memory that we shared until its exec.
func stayDumpable() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
}

// dropsGroups says whether we may let the process drop the groups that it has of us.
func dropsGroups() bool { return os.Geteuid() == 0 }

// AwaitEnd returns when the process that pidFD is of has ended: for who is not its parent, and can learn no more (pidfd_open(2)).
func AwaitEnd(pidFD int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidFD), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}

// reap ends a child that did not become what it should, and takes its remains away.
func reap(pid, pidFD int) {
	_ = unix.PidfdSendSignal(pidFD, unix.SIGKILL, nil, 0)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	unix.Close(pidFD)
}

// release maps the child's one identity and lets it go on.
func release(pid int, cfg Config, sync int) error {
	maps := []struct{ file, text string }{
		{"setgroups", "deny"}, // or an unprivileged user may not write the next
		{"gid_map", fmt.Sprintf("0 %d 1\n", cfg.GID)},
		{"uid_map", fmt.Sprintf("0 %d 1\n", cfg.UID)},
	}
	if dropsGroups() {
		maps = maps[1:]
	}
	for _, m := range maps {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, m.file), []byte(m.text), 0); err != nil {
			return fmt.Errorf("map identity: %w", err)
		}
	}
	if _, err := unix.Write(sync, []byte{0}); err != nil {
		return fmt.Errorf("map identity: %w", os.NewSyscallError("write", err))
	}
	return nil
}

// outcome waits until the child runs its program, or says why it does not.
func (p *plan) outcome(from io.Reader) error {
	var b [8]byte
	if _, err := io.ReadFull(from, b[:]); err == io.EOF {
		return nil // closed by execveat
	} else if err != nil {
		return fmt.Errorf("wait for the jail: %w", err)
	}
	index, errno := binary.NativeEndian.Uint32(b[:]), syscall.Errno(binary.NativeEndian.Uint32(b[4:]))
	if int(index) >= len(p.calls) {
		return fmt.Errorf("wait for the jail: call %d of %d failed", index, len(p.calls))
	}
	return fmt.Errorf("%s: %w", p.calls[index].name, errno)
}

// copies are descriptors of ours above those that the process will have.
type copies struct {
	above int
	fds   []int
	err   error // the first
}

// plan makes p the plan for a child that has the copies.
func (c *copies) plan(p *plan, cfg *Config, o offer, files []*os.File, d descriptors, failure *os.File) (descriptors, error) {
	d.failure, d.exe = c.file(failure), c.file(cfg.Exe)
	sources := make([]int, len(files))
	for i, f := range files {
		sources[i] = c.file(f)
	}
	if c.err != nil {
		return d, c.err
	}
	return d, p.fill(cfg, o, sources, d)
}

// file copies f's descriptor.
func (c *copies) file(f *os.File) int {
	fd := -1
	raw, err := f.SyscallConn()
	if err == nil {
		control := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, c.above) })
		err = errors.Join(control, err)
	}
	if err != nil {
		c.err = errors.Join(c.err, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err))
		return -1
	}
	c.fds = append(c.fds, fd)
	return fd
}

func (c *copies) close() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.fds = nil
}

// Identity returns the uid and gid to jail a sandbox under: one of the reserved range by slot when the caller
// is root, so that hardly two sandboxes share an id, and the caller's own when it is not.
func Identity(slot uint32) (uid, gid uint32) {
	const base, size = 2_000_000_000, 1 << 26 // no system gives these out
	if os.Geteuid() != 0 {
		return uint32(os.Geteuid()), uint32(os.Getegid())
	}
	id := uint32(base + slot%size)
	return id, id
}
