package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Class is what must be known of an attachment before there is a sandbox for it: a Request without one.
type Class struct {
	Choice   Choice `json:"choice"`
	Mediated bool   `json:"mediated,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
}

// Class is the class of attachment that fits the request.
func (r Request) Class() Class {
	return Class{Choice: r.Choice, Mediated: r.Mediated || r.Choice.Mediated(), MTU: r.MTU}
}

// PoolConfig bounds a pool.
type PoolConfig struct {
	Depth int           // attachments that stand ready in each class; at least 1
	Max   int           // in all classes together; the class that was wanted last comes first
	Idle  time.Duration // after which a class that nobody wants is given up; 0 keeps it
	Rest  time.Duration // between a take and the making of another, for which who took one has the processors; 0 is none
	Log   *slog.Logger  // nil is silent
}

// Attacher makes and removes what a pool keeps; *Networks is one.
type Attacher interface {
	// Prepare makes an attachment that no sandbox has yet. It is this process's: Sweep removes it once that has ended.
	Prepare(ctx context.Context, c Class) (*Attachment, error)
	// Bind gives a prepared attachment to a sandbox. From then on it lasts until Detach.
	Bind(a *Attachment, sandbox string) error
	// Discard removes a prepared attachment that no sandbox has.
	Discard(ctx context.Context, a *Attachment) error
}

// Pool keeps attachments ready. A sandbox takes one, uses it once, and detaches it; another is made in the background, by Serve.
type Pool struct {
	from Attacher
	cfg  PoolConfig

	mu      sync.Mutex
	classes map[Class]*shelf
	surplus []*Attachment // taken off their shelves, to be removed by Serve
	closed  bool

	filling sync.Mutex    // one is made at a time: who waits for one has the processors
	wake    chan struct{} // Serve has something to do
}

// shelf is the attachments of a class.
type shelf struct {
	ready  []*Attachment
	wanted time.Time
	hits   uint64
	misses uint64
}

// NewPool makes an empty pool. What a class needs is made when it is wanted first.
func NewPool(from Attacher, cfg PoolConfig) *Pool {
	cfg.Depth, cfg.Max = max(1, cfg.Depth), max(1, cfg.Max)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Pool{from: from, cfg: cfg, classes: map[Class]*shelf{}, wake: make(chan struct{}, 1)}
}

// Take gives a sandbox an attachment that stands ready, or nil when there is none: Attach makes one then. Either way more are
// made in the background. It writes one file and waits for nothing.
func (p *Pool) Take(r Request) (*Attachment, error) {
	a := p.pop(r.Class())
	defer p.rouse()
	if a == nil {
		return nil, nil
	}
	if err := p.from.Bind(a, r.Sandbox); err != nil {
		p.mu.Lock()
		p.surplus = append(p.surplus, a)
		p.mu.Unlock()
		return nil, fmt.Errorf("take attachment: %w", err)
	}
	return a, nil
}

// pop takes an attachment off its shelf and counts.
func (p *Pool) pop(c Class) *Attachment {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	s := p.shelf(c)
	if len(s.ready) == 0 {
		s.misses++
		return nil
	}
	s.hits++
	a := s.ready[0]
	s.ready = s.ready[1:]
	return a
}

// shelf returns that of a class, which is wanted now. The caller holds mu.
func (p *Pool) shelf(c Class) *shelf {
	s := p.classes[c]
	if s == nil {
		s = &shelf{}
		p.classes[c] = s
	}
	s.wanted = time.Now()
	return s
}

// rouse has Serve look what there is to do.
func (p *Pool) rouse() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Keep makes attachments of a class before anybody wants one, and returns when they stand ready.
func (p *Pool) Keep(ctx context.Context, c Class) error {
	p.mu.Lock()
	p.shelf(c)
	p.mu.Unlock()
	return p.fill(ctx, c)
}

// Serve makes what is taken anew and removes what nobody wants, until ctx ends. Then it removes what stands ready and returns when that is gone;
// what sandboxes have taken stays theirs.
func (p *Pool) Serve(ctx context.Context) error {
	var tick <-chan time.Time
	if p.cfg.Idle > 0 {
		t := time.NewTicker(max(p.cfg.Idle/4, time.Millisecond))
		defer t.Stop()
		tick = t.C
	}
	var rested <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return p.close(context.WithoutCancel(ctx))
		case <-p.wake:
			if rested == nil {
				rested = time.After(p.cfg.Rest)
			}
		case <-rested:
			rested = nil
			for _, c := range p.short() {
				if err := p.fill(ctx, c); err != nil && ctx.Err() == nil {
					p.cfg.Log.Warn("prepare attachment", "network", c.Choice.String(), "err", err) // and again when one is wanted
				}
			}
		case <-tick:
			p.expire()
		}
		if err := p.sweep(ctx); err != nil {
			p.cfg.Log.Warn("discard attachment", "err", err)
		}
	}
}

// short returns the classes that have fewer than they should, those that were wanted last first.
func (p *Pool) short() (all []Class) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, s := range p.classes {
		if len(s.ready) < p.cfg.Depth {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Class) int { return p.classes[b].wanted.Compare(p.classes[a].wanted) })
	return all
}

// fill makes attachments until the class has its number.
func (p *Pool) fill(ctx context.Context, c Class) error {
	p.filling.Lock()
	defer p.filling.Unlock()
	for p.lacks(c) {
		if err := p.sweep(ctx); err != nil { // room is made before it is taken
			return err
		}
		a, err := p.from.Prepare(ctx, c)
		if err != nil {
			return err
		}
		p.mu.Lock()
		if s := p.classes[c]; s != nil && !p.closed {
			s.ready = append(s.ready, a)
		} else {
			p.surplus = append(p.surplus, a) // its class was given up meanwhile
		}
		p.mu.Unlock()
	}
	return ctx.Err()
}

// lacks reports whether a class is to have one more, and makes room for it at the expense of the class that was wanted longest ago.
func (p *Pool) lacks(c Class) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.classes[c]
	if s == nil || p.closed || len(s.ready) >= p.cfg.Depth {
		return false
	}
	total := 0
	var oldest *shelf
	for _, other := range p.classes {
		total += len(other.ready)
		if other != s && len(other.ready) > 0 && (oldest == nil || other.wanted.Before(oldest.wanted)) {
			oldest = other
		}
	}
	if total < p.cfg.Max {
		return true
	}
	if oldest == nil || s.wanted.Before(oldest.wanted) {
		return false
	}
	p.surplus = append(p.surplus, oldest.ready[0])
	oldest.ready = oldest.ready[1:]
	return true
}

// expire gives up classes that nobody has wanted for a while.
func (p *Pool) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, s := range p.classes {
		if time.Since(s.wanted) >= p.cfg.Idle {
			p.surplus = append(p.surplus, s.ready...)
			delete(p.classes, c)
		}
	}
}

// sweep removes what was taken off the shelves.
func (p *Pool) sweep(ctx context.Context) error {
	p.mu.Lock()
	surplus := p.surplus
	p.surplus = nil
	p.mu.Unlock()
	var errs []error
	for _, a := range surplus {
		errs = append(errs, p.from.Discard(ctx, a))
	}
	return errors.Join(errs...)
}

// close removes what stands ready.
func (p *Pool) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.classes {
		p.surplus = append(p.surplus, s.ready...)
		s.ready = nil
	}
	p.mu.Unlock()
	p.filling.Lock() // whoever is still making one puts it with the rest
	defer p.filling.Unlock()
	return p.sweep(ctx)
}

// ShelfStats are the figures of one class.
type ShelfStats struct {
	Class
	Ready  int    `json:"ready"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

// Stats returns the figures of all classes.
func (p *Pool) Stats() []ShelfStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := []ShelfStats{}
	for c, s := range p.classes {
		all = append(all, ShelfStats{c, len(s.ready), s.hits, s.misses})
	}
	slices.SortFunc(all, func(a, b ShelfStats) int { return strings.Compare(fmt.Sprint(a.Class), fmt.Sprint(b.Class)) })
	return all
}
