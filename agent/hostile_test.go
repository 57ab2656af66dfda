package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// patience bounds a test that hangs.
const patience = 2 * time.Minute

// impostor is a Dial to something in the guest that answers every connection with the same bytes, whatever it
// is asked, and then hangs up.
func impostor(answer ...[]byte) Dial {
	return scripted(func(c net.Conn) {
		go io.Copy(io.Discard, c)
		for _, b := range answer {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
		c.Close()
	})
}

// scripted is a Dial whose other end is served by do.
func scripted(do func(net.Conn)) Dial {
	return func(context.Context, uint32) (Conn, error) {
		ours, theirs := net.Pipe()
		go do(theirs)
		return ours, nil
	}
}

func text(t FrameType, s string) []byte { return frame(t, uint32(len(s)), s) }

// ask makes every call there is and hands each error to check.
func ask(t *testing.T, dial Dial, check func(call string, err error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := GetStats(ctx, dial)
	check("stats", err)
	check("ping", Ping(ctx, dial))
	check("power off", PowerOff(ctx, dial))
	check("resume", Resume(ctx, dial, Resumed{Now: 1}))
	check("get", Get(ctx, dial, "/etc/passwd", t.TempDir()))
	check("put", Put(ctx, dial, t.TempDir(), "/tmp", Owner{}))
	p, err := Start(ctx, dial, Exec{Args: []string{"true"}}, Streams{Stdin: strings.NewReader("in")})
	if err == nil {
		_, err = p.Wait()
	}
	check("exec", err)
	program := strings.Repeat("x", 3*MaxStream)
	p, err = Start(ctx, dial, Exec{Args: []string{"/tmp/program"}, Program: int64(len(program))}, Streams{Program: strings.NewReader(program)})
	if err == nil {
		_, err = p.Wait()
	}
	check("run", err)
	conn, err := dial(ctx, ControlPort)
	if err == nil {
		_, err = Handshake(ctx, conn, Setup{})
		conn.Close()
	}
	check("handshake", err)
	if ctx.Err() != nil {
		t.Error("a call waited for ever")
	}
}

// AG-01: an agent that answers with nonsense gets errors, in bounded time and memory.
func TestAG01HostileAgent(t *testing.T) {
	started := text(FrameStarted, `{"id":1}`)
	for name, answer := range map[string][]byte{
		"nothing":              nil,
		"10 GB string":         frame(FrameDone, 0xffffffff, strings.Repeat("A", 1<<16)),
		"negative length":      frame(FrameStarted, 0x80000001, "x"),
		"unknown type":         frame(99, 0, ""),
		"half a header":        {1, 2},
		"half a payload":       frame(FrameDone, 100, "{"),
		"unsolicited reply":    text(FrameExit, `{"code":0}`),
		"deep JSON":            text(FrameDone, strings.Repeat("[", 60<<10)),
		"wrong JSON":           text(FrameDone, `{"memory_total":"../../etc"}`),
		"duplicate start":      append(bytes.Clone(started), started...),
		"exit code out of all": append(bytes.Clone(started), text(FrameExit, `{"code":4294967296}`)...),
		"negative signal":      append(bytes.Clone(started), text(FrameExit, `{"signal":-9}`)...),
		"request to the host":  text(FrameRequest, `{"op":"exec","exec":{"args":["sh"]}}`),
		"negative figures":     text(FrameDone, `{"memory_total":-1}`),
		"load with a newline":  text(FrameDone, `{"load":"1\nspore_up{x=\"1\"} 0"}`),
	} {
		t.Run(name, func(t *testing.T) {
			ask(t, impostor(answer), func(call string, err error) {
				if err == nil && call != "ping" && call != "power off" && call != "resume" && call != "put" {
					t.Errorf("%s is content", call)
				}
			})
		})
	}
}

// AG-01: answers that never come, or come a byte at a time, end with the caller's context.
func TestAG01SlowAgent(t *testing.T) {
	for name, do := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { io.Copy(io.Discard, c) },
		"deaf":   func(net.Conn) {},
		"trickle": func(c net.Conn) {
			go io.Copy(io.Discard, c)
			for _, b := range frame(FrameDone, 1000, "") {
				c.Write([]byte{b})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			why := errors.New("the test is over")
			for _, call := range []func(context.Context, Dial) error{
				func(ctx context.Context, d Dial) error { _, err := GetStats(ctx, d); return err },
				func(ctx context.Context, d Dial) error { return Get(ctx, d, "/x", t.TempDir()) },
				func(ctx context.Context, d Dial) error { return Put(ctx, d, t.TempDir(), "/x", Owner{}) },
				func(ctx context.Context, d Dial) error { _, err := Start(ctx, d, Exec{}, Streams{}); return err },
				func(ctx context.Context, d Dial) error {
					_, err := Start(ctx, d, Exec{Program: 1}, Streams{Program: strings.NewReader("x")})
					return err
				},
				func(ctx context.Context, d Dial) error {
					c, err := d(ctx, ControlPort)
					if err == nil {
						_, err = Handshake(ctx, c, Setup{})
					}
					return err
				},
			} {
				ctx, cancel := context.WithCancelCause(t.Context())
				dialled := make(chan struct{})
				var result = make(chan error, 1)
				go func() {
					result <- call(ctx, func(ctx context.Context, port uint32) (Conn, error) {
						defer close(dialled)
						return scripted(do)(ctx, port)
					})
				}()
				<-dialled
				cancel(why)
				if err := <-result; !errors.Is(err, why) {
					t.Errorf("%v, want the context's cause", err)
				}
			}
		})
	}
}

// AG-01: output that never ends is bounded by whoever takes it, and ends with the context.
func TestAG01EndlessOutput(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dial := scripted(func(c net.Conn) {
		go io.Copy(io.Discard, c)
		c.Write(text(FrameStarted, `{"id":1}`))
		for flood := text(FrameStdout, strings.Repeat("y", MaxStream)); ; {
			if _, err := c.Write(flood); err != nil {
				return
			}
		}
	})
	var got int
	out := writerFunc(func(p []byte) (int, error) {
		if got += len(p); got > 64*MaxStream {
			cancel()
		}
		return len(p), nil
	})
	p, err := Start(ctx, dial, Exec{}, Streams{Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// AG-01: a guest that goes away ends every call with ErrLost.
func TestAG01LostGuest(t *testing.T) {
	ask(t, scripted(func(c net.Conn) { c.Close() }), func(call string, err error) {
		if !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v", call, err)
		}
	})
	refused := errors.New("connection refused")
	ask(t, func(context.Context, uint32) (Conn, error) { return nil, refused }, func(call string, err error) {
		if !errors.Is(err, refused) {
			t.Errorf("%s: %v", call, err)
		}
	})
}

// AG-02: a program that speaks as the agent reaches nothing but the call it answers: the id that it invents is
// only ever sent back to the guest, on a connection of its own.
func TestAG02ForgedFrames(t *testing.T) {
	var asked []string
	dial := func(ctx context.Context, port uint32) (Conn, error) {
		asked = append(asked, fmt.Sprint(port))
		return impostor(text(FrameStarted, `{"id":18446744073709551615,"path":"/etc/shadow","op":"poweroff"}`),
			text(FrameStdout, "forged"), text(FrameExit, `{"code":42,"id":9}`), text(FrameExit, `{"code":0}`))(ctx, port)
	}
	var out bytes.Buffer
	p, err := Start(t.Context(), dial, Exec{Args: []string{"x"}}, Streams{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait()
	if err != nil || exit.Code != 42 || out.String() != "forged" {
		t.Errorf("exit %+v, %v; the first exit counts", exit, err)
	}
	if err := p.Signal(t.Context(), 9); err == nil {
		t.Error("a forged answer to a signal was taken")
	}
	if strings.Join(asked, " ") != "1025 1025" {
		t.Errorf("ports %v were dialled", asked)
	}
}

// AG-03: what the guest says of itself cannot break out of the line that it is shown on.
func TestAG03GuestText(t *testing.T) {
	bad := "a\nb\r\x1b]0;x\x07\u202e\u2028\xff" + strings.Repeat("z", 4096)
	quoted := strings.NewReplacer("\n", `\n`, "\r", `\r`, "\x1b", `\u001b`, "\x07", `\u0007`).Replace(bad)
	_, err := GetStats(t.Context(), impostor(text(FrameFailure, `{"error":"`+quoted+`","code":-5}`)))
	var f *Failure
	if !errors.As(err, &f) || f.Code != 0 {
		t.Fatalf("%v", err)
	}
	c, _ := impostor(text(FrameHello, `{"version":1,"kernel":"`+quoted+`"}`), text(FrameReady, `{"error":"`+quoted+`"}`))(t.Context(), 0)
	hello, err := Handshake(t.Context(), c, Setup{})
	if err == nil {
		t.Fatal("a guest that is not ready was taken for one")
	}
	for _, s := range []string{f.Text, hello.Kernel, err.Error()} {
		if strings.ContainsAny(s, "\n\r\x1b\x07\u202e\u2028\xff") || len(s) > maxText+100 {
			t.Errorf("shown as it came: %q", s)
		}
	}
	if got := plain("exec /bin/ü: no such file"); got != "exec /bin/ü: no such file" {
		t.Errorf("%q", got)
	}
}

// FuzzAgent plays an agent that says anything to a host that does everything but unpack; see FuzzUnpack.
func FuzzAgent(f *testing.F) {
	f.Add(append(text(FrameStarted, `{"id":1}`), text(FrameExit, `{"code":3}`)...))
	f.Add(append(text(FrameHello, `{"version":1}`), text(FrameReady, `{}`)...))
	f.Add(text(FrameDone, `{"memory_total":1,"load":"0.1 0.2 0.3"}`))
	f.Add(text(FrameFailure, `{"error":"no\u0000","code":127}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dial := func(context.Context, uint32) (Conn, error) { return &canned{r: bytes.NewReader(b)}, nil }
		ctx := t.Context()
		if s, err := GetStats(ctx, dial); err == nil && s.judge() != nil {
			t.Errorf("%+v", s)
		}
		if p, err := Start(ctx, dial, Exec{}, Streams{}); err == nil {
			if e, err := p.Wait(); err == nil && (e.Code < 0 || e.Code > 255 || e.Signal < 0) {
				t.Errorf("%+v", e)
			}
		}
		c, _ := dial(ctx, 0)
		if h, err := Handshake(ctx, c, Setup{}); err == nil && h.Version != Version {
			t.Errorf("%+v", h)
		}
		_, _ = io.Copy(io.Discard, &received{r: NewReader(c), conn: c})
	})
}

// canned is a connection that says what it has to say and takes everything.
type canned struct {
	net.Conn
	r io.Reader
}

func (c *canned) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
