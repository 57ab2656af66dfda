package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// listener is a process that notes what it is sent, and answers with err; with deaf it does not answer.
type listener struct {
	got  chan int
	err  error
	deaf bool
}

func (l *listener) Signal(ctx context.Context, number int) error {
	l.got <- number
	if l.deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	return l.err
}

func (l *listener) Resize(_ context.Context, s agent.Winsize) error {
	l.got <- int(s.Rows)
	return nil
}

// TestRelay passes on in order, tells of what did not arrive, and hears who insists though the guest is deaf.
func TestRelay(t *testing.T) {
	ended := &agent.Failure{Text: "no such process"}
	for name, c := range map[string]struct {
		process *listener
		send    []os.Signal
		arrives []int // at least
		insists bool
		refused bool
	}{
		"in order":            {&listener{}, []os.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT}, []int{15, 1, 2}, false, false},
		"insists":             {&listener{}, []os.Signal{unix.SIGINT, unix.SIGINT, unix.SIGINT}, []int{2}, true, false},
		"insists, deaf guest": {&listener{deaf: true}, []os.Signal{unix.SIGINT, unix.SIGINT, unix.SIGINT}, []int{2}, true, false},
		"ended":               {&listener{err: ended}, []os.Signal{unix.SIGTERM, unix.SIGHUP}, []int{15, 1}, false, false},
		"lost":                {&listener{err: errors.New("lost")}, []os.Signal{unix.SIGTERM}, []int{15}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			c.process.got = make(chan int, 2*backlog)
			signals, insists, refused, over := make(chan os.Signal), make(chan bool, 1), make(chan bool, 1), make(chan bool)
			r := Streams{Signals: signals}.relay(func() { insists <- true }, func(error) { refused <- true })
			go func() { defer close(over); r.run(ctx, c.process) }()
			for _, s := range c.send {
				signals <- s
			}
			var got []int
			for range c.arrives {
				got = append(got, <-c.process.got)
			}
			if !slices.Equal(got, c.arrives) {
				t.Errorf("signals %v arrive, want %v", got, c.arrives)
			}
			if c.insists {
				<-insists
			}
			if c.refused {
				<-refused
			}
			cancel()
			<-over
			if len(insists) > 0 || len(refused) > 0 {
				t.Errorf("insists %v, refused %v, want %v, %v", len(insists) > 0, len(refused) > 0, c.insists, c.refused)
			}
		})
	}
}

// TestRelayResize: sizes go the same way.
func TestRelayResize(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := &listener{got: make(chan int, 1)}
	sizes, over := make(chan agent.Winsize), make(chan bool)
	go func() { defer close(over); Streams{Resize: sizes}.relay(nil, nil).run(ctx, p) }()
	sizes <- agent.Winsize{Rows: 24}
	if got := <-p.got; got != 24 {
		t.Errorf("%d rows, want 24", got)
	}
	cancel()
	<-over
}

// TestUnanswered asks agents that do not answer, each in its way, and some that refuse.
func TestUnanswered(t *testing.T) {
	for name, c := range map[string]struct {
		guest func(net.Conn) // what it does with the connection; nil is none
		want  bool
	}{
		"says nothing":  {func(c net.Conn) { io.Copy(io.Discard, c) }, true},
		"takes nothing": {func(net.Conn) {}, true},
		"resets":        {func(c net.Conn) { c.Close() }, true},
		"refuses":       {func(c net.Conn) { refuse(t, c) }, false},
		"paused":        {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer theirs.Close()
				err := agent.Ping(t.Context(), func(context.Context, uint32) (agent.Conn, error) {
					if c.guest == nil {
						return nil, errPaused
					}
					go c.guest(theirs)
					return ours, nil
				})
				if got := unanswered(err); err == nil || got != c.want {
					t.Errorf("unanswered: %v, want %v: %v", got, c.want, err)
				}
			})
		})
	}
}

// refuse answers a request with a failure.
func refuse(t *testing.T, c net.Conn) {
	var r agent.Request
	if err := agent.NewReader(c).Expect(agent.FrameRequest, &r); err != nil {
		t.Error(err)
	}
	if err := agent.NewWriter(c).SendJSON(agent.FrameFailure, agent.Failure{Text: "no such process"}); err != nil {
		t.Error(err)
	}
}
