package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"spore/agent"
)

// cuttable is a guest whose connections can all be cut, as by a copy of its machine.
type cuttable struct {
	dial agent.Dial
	mu   sync.Mutex
	all  []agent.Conn
}

func cut(t *testing.T) (*cuttable, *server) {
	dial, a := guest(t)
	c := &cuttable{}
	c.dial = func(ctx context.Context, port uint32) (agent.Conn, error) {
		conn, err := dial(ctx, port)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = append(c.all, conn)
		return conn, err
	}
	return c, a
}

func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		conn.Close()
	}
	c.all = nil
}

// echo is a process that answers each line.
func echo(main bool) agent.Exec {
	e := sh(`while read line; do echo "got $line"; done; echo end; exit 7`)
	e.Main = main
	return e
}

// lines is a writer whose lines can be waited for.
func lines() (io.Writer, func(t *testing.T) string) {
	r, w := io.Pipe()
	c := make(chan string, 16)
	go func() {
		var b [256]byte
		for {
			n, err := r.Read(b[:])
			if err != nil {
				close(c)
				return
			}
			c <- string(b[:n])
		}
	}()
	return w, func(t *testing.T) string {
		t.Helper()
		select {
		case s := <-c:
			return s
		case <-time.After(20 * time.Second):
			t.Fatal("no line came")
			return ""
		}
	}
}

// TestCommandOutlivesACopy cuts the connection of a held machine's command. It says what it had to say, and ends as it
// would have, to the host that attaches.
func TestCommandOutlivesACopy(t *testing.T) {
	for _, order := range []string{"cut, then told", "told, then cut"} {
		t.Run(order, func(t *testing.T) {
			c, a := cut(t)
			stdin, input := io.Pipe()
			out, line := lines()
			p, err := agent.Start(t.Context(), c.dial, echo(true), agent.Streams{Stdin: stdin, Stdout: out})
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(input, "one\n")
			if got := line(t); got != "got one\n" {
				t.Errorf("before: %q", got)
			}
			if err := agent.Hold(t.Context(), c.dial); err != nil {
				t.Fatal(err)
			}
			if order == "cut, then told" {
				c.cut()
				a.copied()
			} else {
				a.copied()
				c.cut()
			}
			if _, err := p.Wait(); !errors.Is(err, agent.ErrLost) {
				t.Errorf("the first host's process: %v, want ErrLost", err)
			}
			stdin, input = io.Pipe()
			out, line = lines()
			q, err := agent.Attach(t.Context(), c.dial, p.ID(), agent.Streams{Stdin: stdin, Stdout: out})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := agent.Attach(t.Context(), c.dial, p.ID(), agent.Streams{}); err == nil {
				t.Error("a second host could attach")
			}
			io.WriteString(input, "two\n")
			if got := line(t); got != "got two\n" {
				t.Errorf("after: %q", got)
			}
			input.Close()
			if exit, err := q.Wait(); err != nil || exit.Code != 7 {
				t.Errorf("ended with %+v, %v", exit, err)
			}
		})
	}
}

// TestOnlyACopyIsOutlived: without one, and for what is not the command, a host that goes away takes the process with it.
func TestOnlyACopyIsOutlived(t *testing.T) {
	for _, test := range []struct {
		name string
		main bool
		do   func(*testing.T, *cuttable, *server)
	}{
		{"the host goes", true, func(*testing.T, *cuttable, *server) {}},
		{"held and released", true, func(t *testing.T, c *cuttable, _ *server) {
			if err := errors.Join(agent.Hold(t.Context(), c.dial), agent.Release(t.Context(), c.dial)); err != nil {
				t.Fatal(err)
			}
		}},
		{"gone while held", false, func(t *testing.T, c *cuttable, a *server) {
			if err := a.hold(); err != nil {
				t.Fatal(err)
			}
			c.cut()
			a.mu.Lock()
			defer a.release()
			defer a.mu.Unlock()
			for _, p := range a.running {
				poll(t, "sign that the connection is broken", func() bool {
					p.link.mu.Lock()
					defer p.link.mu.Unlock()
					return p.link.w == nil
				})
			}
		}},
		{"not the command", false, func(t *testing.T, _ *cuttable, a *server) {
			if err := a.hold(); err != nil {
				t.Fatal(err)
			}
			a.copied()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, a := cut(t)
			stdin, _ := io.Pipe()
			var out bytes.Buffer
			p, err := agent.Start(t.Context(), c.dial, echo(test.main), agent.Streams{Stdin: stdin, Stdout: &out})
			if err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			done := a.running[p.ID()].done
			a.mu.Unlock()
			test.do(t, c, a)
			c.cut()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Error("the process lives on")
			}
		})
	}
}

// TestPatienceIsOfOneCopy copies a machine again before the patience of the first copy has run out: what runs in the second copy
// is not ended by it, whether its host is there already or not.
func TestPatienceIsOfOneCopy(t *testing.T) {
	w, here := agent.NewWriter(io.Discard), func() bool { return false }
	l := newLink(w, here, 0, func(uint64) bool { return true })
	killed := func() { t.Error("killed") }
	copied := func(age uint64) {
		l.lost(age - 1)
		l.await(age, time.Hour, killed)
	}
	copied(1)
	first := l.patience
	if err := l.attach(w, here, 1, 7); err != nil {
		t.Fatal(err)
	}
	if first.Stop() {
		t.Error("the host is there, and it is still awaited")
	}
	copied(2)
	if l.end(1) {
		t.Error("the first copy's patience ended what waits for the second's host")
	}
	if err := l.attach(w, here, 2, 7); err != nil {
		t.Fatal(err)
	}
	if l.end(1) || l.end(2) {
		t.Error("what has a host was ended")
	}
	copied(3) // and of this copy nobody comes
	if !l.end(3) {
		t.Error("patience has no end")
	}
	if err := l.attach(w, here, 3, 7); err == nil {
		t.Error("a host came too late, and was let in")
	}
}
