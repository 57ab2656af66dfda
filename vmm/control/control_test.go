package control

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/wire"
	"spore/vmm/api"
)

// machine records what was asked of it.
type machine struct {
	mu    sync.Mutex
	calls []string
	fail  error
	ended chan struct{}
	once  sync.Once
}

func (m *machine) note(s string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, s)
	return m.fail
}
func (m *machine) Pause(context.Context) error  { return m.note("pause") }
func (m *machine) Resume(context.Context) error { return m.note("resume") }
func (m *machine) SetBalloon(int64) error       { return m.note("balloon") }
func (m *machine) Stop(string)                  { m.note("stop"); m.once.Do(func() { close(m.ended) }) }
func (m *machine) Save(_ context.Context, state, memory, pagemap *os.File, live, _ bool) (api.Saved, error) {
	if _, err := state.WriteString("state"); err != nil {
		return api.Saved{}, err
	}
	if _, err := memory.WriteString("memory"); err != nil {
		return api.Saved{}, err
	}
	_, err := pagemap.WriteString("pagemap")
	return api.Saved{Changes: live}, errors.Join(err, m.note("save"))
}
func (m *machine) Hot(_, _ *os.File) error { return m.note("hot") }
func (m *machine) Track()                  { m.note("track") }
func (m *machine) Stopped() time.Duration  { return time.Second }
func (m *machine) Stats() map[string]map[string]uint64 {
	return map[string]map[string]uint64{"vcpu0": {"mmio": 3}}
}

func start(t *testing.T) (*machine, *Server, net.Conn, chan error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := net.FileConn(os.NewFile(uintptr(fds[0]), "ours"))
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[0])
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	conn, err := NewSocket(theirs)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{ended: make(chan struct{})}
	s := New(conn, nil)
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), m) }()
	return m, s, ours, done
}

func ask(t *testing.T, c net.Conn, r api.Request) api.Reply {
	t.Helper()
	if err := api.Send(c, &r); err != nil {
		t.Fatal(err)
	}
	var m api.Message
	if err := api.Receive(c, &m); err != nil {
		t.Fatal(err)
	}
	if m.Reply == nil || m.Reply.ID != r.ID {
		t.Fatalf("reply %+v to request %d", m.Reply, r.ID)
	}
	return *m.Reply
}

func TestRequests(t *testing.T) {
	m, _, c, _ := start(t)
	for i, op := range []api.Op{api.OpPause, api.OpResume, api.OpBalloon} {
		if r := ask(t, c, api.Request{ID: uint64(i + 1), Op: op}); r.Error != "" {
			t.Errorf("%s: %s", op, r.Error)
		}
	}
	if r := ask(t, c, api.Request{ID: 9, Op: api.OpStats}); r.Counters["vcpu0"]["mmio"] != 3 {
		t.Errorf("stats: %+v", r)
	}
	if r := ask(t, c, api.Request{ID: 10, Op: "explode"}); r.Error == "" {
		t.Error("unknown request: no error")
	}
	m.mu.Lock()
	m.fail = errors.New("no")
	m.mu.Unlock()
	if r := ask(t, c, api.Request{ID: 11, Op: api.OpPause}); r.Error != "no" {
		t.Errorf("failing pause: %+v", r)
	}
	if r := ask(t, c, api.Request{ID: 12, Op: api.OpStop}); r.Error != "" {
		t.Errorf("stop: %+v", r)
	}
	<-m.ended
}

func TestAClosedSocketStopsTheMachine(t *testing.T) {
	m, _, c, done := start(t)
	c.Close()
	<-m.ended
	if err := <-done; err != nil {
		t.Errorf("serve: %v, want nil for an orderly close", err)
	}
}

func TestGarbageStopsTheMachine(t *testing.T) {
	m, _, c, done := start(t)
	if _, err := c.Write([]byte{0xff, 0xff, 0xff, 0x7f}); err != nil { // a frame of 2 GiB
		t.Fatal(err)
	}
	<-m.ended
	if err := <-done; !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("serve: %v, want ErrTooLong", err)
	}
}

func TestNothingFollowsTheExitEvent(t *testing.T) {
	_, s, c, _ := start(t)
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(s.Event(api.Event{Kind: api.EventStarted}), s.Event(api.Event{Kind: api.EventExit, Reason: api.ExitPowerOff}),
			s.Event(api.Event{Kind: api.EventStarted}))
	}()
	for _, want := range []api.EventKind{api.EventStarted, api.EventExit} {
		var m api.Message
		if err := api.Receive(c, &m); err != nil || m.Event == nil || m.Event.Kind != want {
			t.Fatalf("got %+v, %v; want %s", m.Event, err, want)
		}
	}
	if err := <-sent; err != nil { // the third did not wait for a reader
		t.Error(err)
	}
}

// TestSaveWritesToTheDescriptors sends what a snapshot goes to with the request, too few of them, and too many.
func TestSaveWritesToTheDescriptors(t *testing.T) {
	m, _, c, _ := start(t)
	dir := t.TempDir()
	for _, test := range []struct {
		files int
		want  string
	}{{3, ""}, {0, "0 descriptors came with the request, want 3"}, {2, "2 descriptors came with the request, want 3"}, {4, "4 descriptors came with the request, want 3"}} {
		var rights []int
		var paths []string
		for range test.files {
			f, err := os.CreateTemp(dir, "file")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			rights, paths = append(rights, int(f.Fd())), append(paths, f.Name())
		}
		var frame bytes.Buffer
		if err := api.Send(&frame, &api.Request{ID: 1, Op: api.OpSave, Live: true}); err != nil {
			t.Fatal(err)
		}
		var oob []byte
		if rights != nil {
			oob = unix.UnixRights(rights...)
		}
		if _, _, err := c.(*net.UnixConn).WriteMsgUnix(frame.Bytes(), oob, nil); err != nil {
			t.Fatal(err)
		}
		var reply api.Message
		if err := api.Receive(c, &reply); err != nil {
			t.Fatal(err)
		}
		if reply.Reply.Error != test.want {
			t.Errorf("%d files: error %q, want %q", test.files, reply.Reply.Error, test.want)
		}
		if test.want != "" {
			continue
		}
		if reply.Reply.Saved == nil || !reply.Reply.Saved.Changes {
			t.Errorf("%d files: reply %+v", test.files, reply.Reply)
		}
		for i, want := range []string{"state", "memory", "pagemap"} {
			if got, err := os.ReadFile(paths[i]); err != nil || string(got) != want {
				t.Errorf("file %d holds %q, %v", i, got, err)
			}
		}
	}
	if r := ask(t, c, api.Request{ID: 2, Op: api.OpSave}); r.Error == "" {
		t.Error("descriptors of an earlier request were used again")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.calls) != 1 {
		t.Errorf("calls %v, want one save", m.calls)
	}
}
