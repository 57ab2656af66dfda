package network

import (
	"context"
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

// Pool keeps attachments ready. A sandbox takes one, uses it once, and detaches it; another is made in the background.
type Pool struct{}

// NewPool makes an empty pool. What a class needs is made when it is wanted first.
func NewPool(from Attacher, cfg PoolConfig) *Pool { return &Pool{} }

// Keep makes attachments of a class before anybody wants one, and returns when they stand ready.
func (p *Pool) Keep(ctx context.Context, c Class) error { return nil }

// Take gives a sandbox an attachment that stands ready, or nil when there is none: Attach makes one then. Either way more are
// made in the background.
func (p *Pool) Take(r Request) (*Attachment, error) { return nil, nil }

// ShelfStats are the figures of one class.
type ShelfStats struct {
	Class
	Ready  int    `json:"ready"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

// Stats returns the figures of all classes.
func (p *Pool) Stats() []ShelfStats { return nil }

// Close removes what stands ready and returns when it is gone. What sandboxes have taken stays theirs.
func (p *Pool) Close() error { return nil }
