package main

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"spore/agent"
	"spore/sandbox"
)

// terminal puts our terminal into raw mode for a command with a terminal of its own, and follows its size.
// The returned function undoes that. Without tty it does nothing.
func terminal(s *sandbox.Streams, tty bool) (restore func(), err error) {
	if !tty {
		return func() {}, nil
	}
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	if s.Stdin != nil && !term.IsTerminal(in) {
		return nil, errors.New("--tty: standard input is no terminal: leave out -t")
	}
	s.Size = size(out)
	resize := make(chan agent.Winsize, 1)
	changed := make(chan os.Signal, 1)
	stop := make(chan struct{})
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-changed:
				select {
				case resize <- size(out):
				default: // an earlier size has not been taken yet; the next signal brings the newest
				}
			}
		}
	}()
	s.Resize = resize
	undo := func() {}
	if s.Stdin != nil {
		old, err := term.MakeRaw(in)
		if err != nil {
			return nil, err
		}
		undo = func() { term.Restore(in, old) }
	}
	return func() {
		signal.Stop(changed)
		close(stop)
		undo()
	}, nil
}

// size of the terminal at fd, or the classic one when it has none.
func size(fd int) agent.Winsize {
	cols, rows, err := term.GetSize(fd)
	if err != nil {
		cols, rows = 80, 24
	}
	return agent.Winsize{Rows: uint16(rows), Cols: uint16(cols)}
}
