package emuhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
)

// ExitLost is the exit code of a command whose host went away, or that could
// not be handed to it.
const ExitLost = 125

// ForwardedSignals are those that make sense to pass on to a command.
func ForwardedSignals() []os.Signal {
	return []os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
	}
}

// Command is a command to run in the host.
type Command struct {
	Args []string // program and arguments; not empty
	Env  []string // "NAME=value"; empty means a minimal environment
	Dir  string   // the same path as outside; empty means the caller's directory
	// Keep are files that the host is to have in its memory instead of reading them from outside every time: the program, by the path
	// in Args, and what it looks for beside itself. Those that are not there are left out. A file that changes is copied anew.
	Keep []string
	// Stdin is read until its end; nil is empty. When it is a file, one read
	// may still be under way after Run has returned, as with os/exec.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil discards it.
	Stdout, Stderr io.Writer
	// TTY runs the command on a pseudo-terminal: all output goes to Stdout. If
	// Stdin is a terminal, it is raw while the command runs.
	TTY bool
	// Signals are passed on to the command's process group; SIGWINCH becomes
	// a new size of its terminal. nil passes none.
	Signals <-chan os.Signal
}

// Run runs a command in the host, which must be running, and returns its exit
// code, 128+N when signal N ended it. If ctx ends first, the command is killed.
// With an error the code is ExitLost.
func (h *Host) Run(ctx context.Context, cmd Command) (int, error) {
	if len(cmd.Args) == 0 {
		return ExitLost, errors.New("run on the emulated host: no command")
	}
	if cmd.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return ExitLost, fmt.Errorf("run on the emulated host: %w", err)
		}
		cmd.Dir = dir
	}
	c, err := h.openPort(ctx)
	if err != nil {
		return ExitLost, err
	}
	defer c.Close()
	s := &clientSession{connection: c, cmd: cmd, credit: make(chan int, 1), done: make(chan struct{})}
	code, err := s.run(ctx)
	if err != nil {
		return ExitLost, fmt.Errorf("run %s on the emulated host: %w", cmd.Args[0], err)
	}
	return code, nil
}

// clientSession is the outer end of a command.
type clientSession struct {
	*connection
	cmd    Command
	credit chan int      // bytes of stdin that may be sent, merged
	done   chan struct{} // closed when the command has ended
}

func (s *clientSession) run(ctx context.Context) (int, error) {
	start := frame.Start{
		Args: s.cmd.Args, Env: s.cmd.Env, Dir: s.cmd.Dir, TTY: s.cmd.TTY, UnixNano: time.Now().UnixNano(),
	}
	for _, path := range s.cmd.Keep {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			start.Kept = append(start.Kept, frame.Kept{Path: path, Size: st.Size(), ModTime: st.ModTime().UnixNano()})
		}
	}
	if s.cmd.TTY {
		start.Rows, start.Cols = s.windowSize()
		restore := makeRaw(s.cmd.Stdin)
		defer restore()
	}
	if err := s.request(frame.TypeStart, start); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s.credit <- frame.StdinWindow
	var forwarding sync.WaitGroup
	forwarding.Go(s.forwardSignals)
	defer forwarding.Wait()
	defer close(s.done)
	go s.forwardStdin()
	code, err := s.receive()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return code, err
}

// receive passes the output on until the command has ended.
func (s *clientSession) receive() (int, error) {
	for {
		f, err := s.in.Next()
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrLost, err)
		}
		switch f.Type {
		case frame.TypeStdout:
			err = s.deliver(1, &s.cmd.Stdout, f.Payload)
		case frame.TypeStderr:
			err = s.deliver(2, &s.cmd.Stderr, f.Payload)
		case frame.TypeWindow:
			var n uint32
			if n, err = frame.ParseUint32(f.Payload); err == nil {
				s.addCredit(int(n))
			}
		case frame.TypeExit:
			exit, err := frame.ParseExit(f.Payload)
			return exit.Code(), err
		case frame.TypeError:
			return 0, errors.New(string(f.Payload))
		case frame.TypeStarted:
		default:
			err = fmt.Errorf("type %d: %w", f.Type, frame.ErrFrame)
		}
		if err != nil {
			return 0, err
		}
	}
}

// deliver writes output. When nobody takes it any more, the command is told
// by a closed pipe, as it would be without us in between.
func (s *clientSession) deliver(stream byte, w *io.Writer, b []byte) error {
	if *w == nil {
		return nil
	}
	if _, err := (*w).Write(b); err != nil {
		*w = nil
		return s.send(frame.TypeClose, []byte{stream})
	}
	return nil
}

// addCredit allows n more bytes of stdin. Only receive calls it, so that the
// merged value always fits.
func (s *clientSession) addCredit(n int) {
	select {
	case old := <-s.credit:
		n += old
	default:
	}
	s.credit <- min(n, frame.StdinWindow)
}

// forwardStdin sends stdin as far as the guest takes it.
func (s *clientSession) forwardStdin() {
	if s.cmd.Stdin == nil {
		_ = s.send(frame.TypeStdinEOF, nil) // a lost host shows in receive
		return
	}
	buf := make([]byte, frame.MaxClientPayload)
	credit := 0
	for {
		n, err := s.cmd.Stdin.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			for credit == 0 {
				select {
				case credit = <-s.credit:
				case <-s.done:
					return
				}
			}
			part := b[:min(len(b), credit)]
			if s.send(frame.TypeStdin, part) != nil {
				return
			}
			credit -= len(part)
			b = b[len(part):]
		}
		if err != nil {
			_ = s.send(frame.TypeStdinEOF, nil) // a lost host shows in receive
			return
		}
	}
}

// forwardSignals passes signals on until the command has ended.
func (s *clientSession) forwardSignals() {
	for {
		select {
		case sig, ok := <-s.cmd.Signals:
			if !ok {
				return
			}
			number, isNumber := sig.(syscall.Signal)
			if sig == syscall.SIGWINCH {
				if rows, cols := s.windowSize(); s.cmd.TTY && rows > 0 {
					_ = s.send(frame.TypeResize, frame.AppendResize(nil, rows, cols))
				}
			} else if isNumber {
				_ = s.send(frame.TypeSignal, []byte{byte(number)})
			}
		case <-s.done:
			return
		}
	}
}

// windowSize is the size of the caller's terminal, 0×0 if there is none.
func (s *clientSession) windowSize() (rows, cols uint16) {
	for _, stream := range []any{s.cmd.Stdin, s.cmd.Stdout} {
		if f, ok := stream.(*os.File); ok {
			if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
				return ws.Row, ws.Col
			}
		}
	}
	return 0, 0
}

// makeRaw puts a terminal into raw mode and returns what undoes it.
func makeRaw(stdin io.Reader) (restore func()) {
	f, ok := stdin.(*os.File)
	if !ok {
		return func() {}
	}
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return func() {}
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw) != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }
}

// IsTerminal says whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
