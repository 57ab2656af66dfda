package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// server carries out requests.
type server struct {
	setup  agent.Setup
	upper  *os.File // the writable layer; nil when it is in memory
	reaper *reaper
	last   atomic.Uint64 // number of the last process
	held   atomic.Bool   // the machine is about to be saved
	copies atomic.Uint64 // how often this machine has been made of another
	groups groups
	off    func() // switches off
	hooks  string // directory of the image's hooks
	late   late

	mu      sync.Mutex
	running map[uint64]*process
	ca      []byte // certificates that processes are told to trust; nil is none
}

func (a *server) add(id uint64, p *process) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running == nil {
		a.running = map[uint64]*process{}
	}
	a.running[id] = p
}

func (a *server) forget(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, id)
}

// errNoProcess answers a request about a process that has ended, or never was.
var errNoProcess = errors.New("no such process")

// with does something to a running process.
func (a *server) with(id uint64, w *agent.Writer, do func(*process) error) error {
	a.mu.Lock()
	p := a.running[id]
	err := errNoProcess
	if p != nil {
		err = do(p)
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	return w.Send(agent.FrameDone, []byte("{}"))
}

// growStack makes a goroutine's stack as large as a request needs it, at once: each time that it grows the runtime walks all its
// frames, through tables that a guest which has just woken has not read yet.
//
//go:noinline
func growStack() {
	var room [12 << 10]byte
	touch(&room)
}

//go:noinline
func touch(*[12 << 10]byte) {}

// serve handles one connection: one request.
func (a *server) serve(c io.ReadWriteCloser) {
	growStack()
	defer c.Close()
	r, w := agent.NewReader(c), agent.NewWriter(c)
	var req agent.Request
	if err := r.Expect(agent.FrameRequest, &req); err != nil {
		return
	}
	if err := a.do(req, c, r, w); err != nil {
		var f *agent.Failure
		if !errors.As(err, &f) {
			f = &agent.Failure{Text: err.Error()}
		}
		// A host that has gone needs no answer.
		_ = w.SendJSON(agent.FrameFailure, f)
	}
}

func (a *server) do(req agent.Request, c io.ReadWriteCloser, r *agent.Reader, w *agent.Writer) error {
	switch {
	case (req.Op == agent.OpExec || req.Op == agent.OpRun) && req.Exec != nil && len(req.Exec.Args) > 0:
		if req.Op == agent.OpRun {
			if err := takeProgram(*req.Exec, r); err != nil {
				return err
			}
		}
		return a.exec(*req.Exec, "", func() bool { return hungUp(c) }, r, w)
	case req.Op == agent.OpAttach:
		return a.attach(req.ID, func() bool { return hungUp(c) }, r, w)
	case req.Op == agent.OpHold:
		if err := a.hold(); err != nil {
			return err
		}
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpRelease:
		a.release()
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpSignal && req.Signal > 0 && req.Signal <= 64:
		return a.with(req.ID, w, func(p *process) error { return a.reaper.signal(p.pid, unix.Signal(req.Signal)) })
	case req.Op == agent.OpResize && req.Size != nil:
		return a.with(req.ID, w, func(p *process) error { return p.resize(*req.Size) })
	case req.Op == agent.OpPut:
		return put(req, r, w)
	case req.Op == agent.OpGet:
		return get(req, w)
	case req.Op == agent.OpStats:
		return w.SendJSON(agent.FrameDone, stats())
	case req.Op == agent.OpPing:
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpResumed && req.Resumed != nil:
		if err := a.resumed(*req.Resumed); err != nil {
			return err
		}
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpRehearse:
		a.late.attach()
		collapseText()
		a.rehearse(rehearsalRoot, rehearsed, rehearsalLimit, agent.NewWriter(io.Discard))
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpSync:
		unix.Sync()
		return w.Send(agent.FrameDone, []byte("{}"))
	case req.Op == agent.OpPowerOff:
		return a.powerOff(w)
	}
	return fmt.Errorf("unknown request %q", req.Op)
}

// powerOffGrace is how long processes have to end by themselves.
const powerOffGrace = 2 * time.Second

// powerOff ends everything in the order that loses nothing.
func (a *server) powerOff(w *agent.Writer) error {
	busy := func() bool { return number(a.groups.root+"/pids.current") > 0 }
	wait := func(limit time.Duration) {
		for end := time.Now().Add(limit); busy() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if busy() {
		_ = unix.Kill(-1, unix.SIGTERM)
		wait(powerOffGrace)
		_ = writeFile(a.groups.root+"/cgroup.kill", "1")
		wait(powerOffGrace)
	}
	freeze(a.upper)
	err := w.Send(agent.FrameDone, []byte("{}"))
	a.off()
	return err
}

// put takes a tar stream.
func put(req agent.Request, r *agent.Reader, w *agent.Writer) error {
	err := agent.Unpack(&tarStream{r: r}, req.Path, agent.Rules{Owner: &agent.Owner{UID: int(req.UID), GID: int(req.GID)}, Links: true})
	if err != nil {
		return err
	}
	return w.Send(agent.FrameDone, []byte("{}"))
}

// get sends a tar stream.
func get(req agent.Request, w *agent.Writer) error {
	if err := agent.Pack(w.Stream(agent.FrameData), req.Path); err != nil {
		return err
	}
	return w.Send(agent.FrameEOF, nil)
}

// tarStream reads the bytes of FrameData frames until FrameEOF.
type tarStream struct {
	r    *agent.Reader
	rest []byte
	done bool
}

func (s *tarStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.done {
			return 0, io.EOF
		}
		t, payload, err := s.r.Next()
		switch {
		case err != nil:
			return 0, io.ErrUnexpectedEOF
		case t == agent.FrameEOF:
			s.done = true
		case t == agent.FrameData:
			s.rest = payload
		default:
			return 0, agent.ErrFrame
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
