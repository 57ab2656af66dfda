package guest

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"spore/agent"
)

// link is a process's way to its host: the connection that it was started on. When the machine is copied, the copy has
// lost the connection, and the process waits until the host of the copy attaches: what it had to say is said then.
type link struct {
	copied func(age uint64) bool // whether a connection of that age was lost to a copy, and not to a host that went away

	mu       sync.Mutex
	attached sync.Cond
	w        *agent.Writer // nil while nobody is attached
	gone     func() bool   // whether the host is, bytes that it left notwithstanding
	age      uint64        // of the connection: how often the machine had been copied when it was made
	over     bool          // nobody will attach any more
	awaited  uint64        // the last copy whose host was awaited
	patience *time.Timer   // of that; nil or stopped while there is a host
}

func newLink(w *agent.Writer, gone func() bool, age uint64, copied func(age uint64) bool) *link {
	l := &link{copied: copied, w: w, gone: gone, age: age}
	l.attached.L = &l.mu
	return l
}

// Send sends one frame. It waits while the process is between two hosts.
func (l *link) Send(t agent.FrameType, payload []byte) error {
	for {
		w, age, err := l.current()
		if err != nil {
			return err
		}
		if err = w.Send(t, payload); err == nil || !l.lost(age) {
			return err
		}
	}
}

// SendJSON is Send of a value.
func (l *link) SendJSON(t agent.FrameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return l.Send(t, b)
}

func (l *link) current() (*agent.Writer, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.w == nil && !l.over {
		l.attached.Wait()
	}
	if l.over {
		return nil, 0, agent.ErrLost
	}
	return l.w, l.age, nil
}

// lost says that a connection of that age is broken, and reports whether another may come.
func (l *link) lost(age uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
		return false
	case l.w == nil || l.age != age:
		return true // somebody has noticed before, or a new one is there
	case !l.copied(age):
		return false
	}
	l.w = nil
	return true
}

// attach gives the process a new host, and says so to it before anything of the process can. It fails if there is one.
func (l *link) attach(w *agent.Writer, gone func() bool, age, id uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.w != nil && l.age == age {
		return &agent.Failure{Text: "the process is not waiting for a host"}
	}
	if err := w.SendJSON(agent.FrameStarted, agent.Started{ID: id}); err != nil {
		return err
	}
	l.w, l.gone, l.age = w, gone, age
	l.attached.Broadcast()
	if l.patience != nil { // the machine may be copied again before it would have run out
		l.patience.Stop()
	}
	return nil
}

// await gives a host of the copy of that age some time to attach. If none does, nobody will, and the process is killed.
func (l *link) await(age uint64, limit time.Duration, kill func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.patience != nil {
		l.patience.Stop()
	}
	l.awaited = age
	l.patience = time.AfterFunc(limit, func() {
		if l.end(age) {
			kill()
		}
	})
}

// end says that nobody will attach to what has nobody now, in the copy of that age. What a later copy has is not its business.
func (l *link) end(age uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if max(l.age, l.awaited) > age || l.w != nil && l.age == age {
		return false
	}
	l.over = true
	l.attached.Broadcast()
	return true
}

// forsaken is end for what was attached by a connection of that age and has lost it.
func (l *link) forsaken(age uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w != nil || l.age != age {
		return false
	}
	l.over = true
	l.attached.Broadcast()
	return true
}

func (l *link) hostGone() bool {
	l.mu.Lock()
	gone := l.gone
	l.mu.Unlock()
	return gone()
}

// attachLimit is how long a copied machine's host may take to attach to the command.
const attachLimit = time.Minute

// lostToCopy is what a link asks.
func (a *server) lostToCopy(age uint64) bool { return a.held.Load() || a.copies.Load() != age }

// hold prepares for the machine to be saved: a connection that breaks from now on may have been cut off in a copy.
func (a *server) hold() error {
	if err := a.runHooks(beforeSnapshot); err != nil {
		a.release()
		return err
	}
	a.held.Store(true)
	return nil
}

// release says that the machine was saved and this is still it. What lost its host meanwhile ends, as it would have then.
func (a *server) release() {
	a.held.Store(false)
	age := a.copies.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.running {
		if p.link.forsaken(age) {
			p.abandon()
		}
	}
}

// copied says that this machine is a copy. Its connections are gone; the command waits for its new host, and all other
// processes that were started from outside end as if their host had gone.
func (a *server) copied() {
	age := a.copies.Add(1)
	a.held.Store(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.running {
		if !p.main {
			p.link.end(age)
			p.abandon()
			continue
		}
		p.link.await(age, attachLimit, p.kill)
	}
}

// attach makes a new connection that of a running process, and serves it until the process has ended.
func (a *server) attach(id uint64, gone func() bool, r *agent.Reader, w *agent.Writer) error {
	a.mu.Lock()
	p := a.running[id]
	a.mu.Unlock()
	if p == nil {
		return errNoProcess
	}
	age := a.copies.Load()
	if err := p.link.attach(w, gone, age, id); err != nil {
		return err
	}
	go p.listen(r, age)
	<-p.done
	return nil
}
