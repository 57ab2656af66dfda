package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
)

const (
	// orphanGrace is how long output is still awaited after the process ended,
	// when something it left behind holds its pipes.
	orphanGrace = 100 * time.Millisecond
	// orphanLimit bounds what is taken from the pipes after that.
	orphanLimit = 1 << 20
)

type sendFunc func(frame.Type, []byte) error

// process is a running command with its streams.
type process struct {
	cmd  *exec.Cmd
	send sendFunc
	tty  bool

	stdin   *os.File    // write end, or the terminal
	outputs [3]*os.File // read ends by stream number; 1 may be the terminal

	mu       sync.Mutex
	pending  []byte        // stdin not yet taken by feed
	unacked  int           // stdin bytes not yet acknowledged, at most frame.StdinWindow
	inputEOF bool          // nothing follows pending
	input    chan struct{} // holds a token when pending or inputEOF changed

	exited chan struct{} // the process itself has been reaped
	done   chan struct{} // and the exit frame is sent
}

// startProcess starts what req asks for. Its frames go through send.
func startProcess(req frame.Start, send sendFunc) (*process, error) {
	cmd, err := command(req)
	if err != nil {
		return nil, err
	}
	p := &process{
		cmd: cmd, send: send, tty: req.TTY,
		input:  make(chan struct{}, 1),
		exited: make(chan struct{}), done: make(chan struct{}),
	}
	childEnds, err := p.attach(req)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range childEnds {
		_ = f.Close()
	}
	if err != nil {
		p.closeAll()
		return nil, err
	}
	if err := send(frame.TypeStarted, binary.LittleEndian.AppendUint32(nil, uint32(cmd.Process.Pid))); err != nil {
		p.send = func(frame.Type, []byte) error { return err } // noticed by the reader
	}
	go p.feed()
	go p.run()
	return p, nil
}

// command prepares the process without its streams.
func command(req frame.Start) (*exec.Cmd, error) {
	env := req.Env
	if len(env) == 0 {
		env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	}
	dir := req.Dir
	if dir == "" {
		dir = "/"
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("enter directory: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("enter directory %s: %w", dir, syscall.ENOTDIR)
	}
	path, err := lookPath(req.Args[0], dir, env)
	if err != nil {
		return nil, err
	}
	return &exec.Cmd{
		Path: path, Args: req.Args, Env: env, Dir: dir,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: req.TTY},
	}, nil
}

// lookPath finds a program the way the process itself would: PATH of its own
// environment, relative names from its own directory.
func lookPath(name, dir string, env []string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, e := range env {
			if list, ok := strings.CutPrefix(e, "PATH="); ok {
				for _, d := range filepath.SplitList(list) {
					candidates = append(candidates, filepath.Join(d, name))
				}
			}
		}
	}
	err := error(fs.ErrNotExist)
	for _, c := range candidates {
		if !filepath.IsAbs(c) {
			c = filepath.Join(dir, c)
		}
		st, statErr := os.Stat(c)
		if statErr != nil {
			continue
		}
		if st.Mode().IsRegular() && unix.Access(c, unix.X_OK) == nil {
			return c, nil
		}
		err = fs.ErrPermission
	}
	return "", fmt.Errorf("run %s: %w", name, err)
}

// startErrorCode is the exit code a shell gives for a start error.
func startErrorCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return 127
	}
	return 126
}

// attach makes the process's streams and returns the ends that are the child's.
func (p *process) attach(req frame.Start) (childEnds []*os.File, err error) {
	if req.TTY {
		master, slave, err := openTerminal(req.Rows, req.Cols)
		if err != nil {
			return nil, err
		}
		p.stdin, p.outputs[1] = master, master
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
		return []*os.File{slave}, nil
	}
	pipe := func(childReads bool) (ours, theirs *os.File) {
		r, w, pipeErr := os.Pipe()
		if pipeErr != nil {
			err = errors.Join(err, pipeErr)
			return nil, nil
		}
		if childReads {
			r, w = w, r
		}
		childEnds = append(childEnds, w)
		return r, w
	}
	var in, out, errs *os.File
	p.stdin, in = pipe(true)
	p.outputs[1], out = pipe(false)
	p.outputs[2], errs = pipe(false)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, errs
	return childEnds, err
}

func (p *process) closeAll() {
	for _, f := range []*os.File{p.stdin, p.outputs[1], p.outputs[2]} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// run moves the output, waits for the process and reports its exit.
func (p *process) run() {
	var moving sync.WaitGroup
	for stream, t := range map[int]frame.Type{1: frame.TypeStdout, 2: frame.TypeStderr} {
		if f := p.outputs[stream]; f != nil {
			moving.Go(func() { p.drain(f, t) })
		}
	}
	_ = p.cmd.Wait() // how it ended is in ProcessState
	close(p.exited)
	for _, f := range p.outputs {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(orphanGrace))
		}
	}
	moving.Wait()
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	exit := frame.Exit{Value: uint8(ws.ExitStatus())}
	if ws.Signaled() {
		exit = frame.Exit{Signaled: true, Value: uint8(ws.Signal())}
	}
	_ = p.send(frame.TypeExit, exit.Append(nil)) // a client that is gone shows at the next read
	p.closeAll()
	close(p.done)
}

// drain sends what comes out of f until its end.
func (p *process) drain(f *os.File, t frame.Type) {
	buf := make([]byte, frame.MaxPayload)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if p.send(t, buf[:n]) != nil {
				_ = f.Close() // the process gets SIGPIPE or EIO
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.drainRest(f, t, buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// drainRest sends what is in f right now.
func (p *process) drainRest(f *os.File, t frame.Type, buf []byte) {
	raw, err := f.SyscallConn()
	if err != nil || f.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for total := 0; total < orphanLimit; {
		n := 0
		if raw.Read(func(fd uintptr) bool { n, err = unix.Read(int(fd), buf); return true }) != nil {
			return
		}
		if err != nil || n <= 0 || p.send(t, buf[:n]) != nil {
			return
		}
		total += n
	}
}
