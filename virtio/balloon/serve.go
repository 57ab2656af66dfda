package balloon

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/queue"
)

// server runs one queue.
type server struct {
	d    *Device
	q    *queue.Queue
	mu   *sync.Mutex // over q
	used func()
	mem  *guestmem.Memory
	own  []span // pages of the device's queues
	// handle does what a chain asks for. hold means that it keeps the chain and gives it back itself.
	handle func(s *server, c *queue.Chain) (hold bool)
	// end runs when the queue is no longer served, with mu held; nil is nothing.
	end   func()
	pages pages
}

// servers makes one server for each queue the driver has set up. Which number a queue has depends on the features:
// drivers number only the queues that exist, in the order of virtio 1.2 §5.5.2, where the text of that section gives
// reporting_vq the number 4 in any case; both are taken.
func (d *Device) servers(a virtio.Active) (list []*server) {
	own := rings(a.Queues)
	add := func(index int, handle func(*server, *queue.Chain) bool) *server {
		if index >= len(a.Queues) || a.Queues[index] == nil {
			return nil
		}
		s := &server{d: d, q: a.Queues[index], mu: new(sync.Mutex), mem: a.Mem, own: own, handle: handle}
		s.used = func() { a.Used(index) }
		list = append(list, s)
		return s
	}
	add(0, (*server).inflate)
	add(1, (*server).deflate)
	next := 2
	if a.Features&featureStats != 0 {
		if s := add(next, (*server).takeStats); s != nil {
			s.serveStats()
		}
		next++
	}
	if a.Features&featureReporting != 0 && add(next, (*server).report) == nil && next < 4 {
		add(4, (*server).report)
	}
	return list
}

// contained is serve, with a panic, which would be our mistake, turned into an error: it costs the guest its balloon
// and not the process its other work.
func (s *server) contained(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("balloon panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return s.serve(ctx)
}

// serve runs until ctx ends (nil) or the ring is broken. When it returns every chain taken is given back.
func (s *server) serve(ctx context.Context) error {
	if s.end != nil {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.end()
		}()
	}
	for {
		if err := s.q.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = s.drain(ctx); err != nil {
				return err
			}
		}
	}
}

// drain handles what is in the ring and reports whether there is more already.
func (s *server) drain(ctx context.Context) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.q.DisableKicks()
	for ctx.Err() == nil {
		c, err := s.q.Pop()
		if err != nil && !errors.Is(err, queue.ErrChain) {
			return false, err
		}
		if c == nil {
			break
		}
		if err != nil {
			s.d.counters.malformed.Add(1)
		} else if s.handle(s, c) {
			continue
		}
		if err := s.q.Push(c.Head, 0); err != nil {
			return false, err
		}
	}
	if s.q.NeedsInterrupt() {
		s.used()
	}
	return s.q.EnableKicks(), nil
}

// inflate gives the pages of a chain back to the host.
func (s *server) inflate(c *queue.Chain) bool {
	pfns, rest := s.pages.parse(c.Readable)
	if rest {
		s.d.counters.oversized.Add(1)
	}
	// Keep the numbers that are pages of RAM and not of a ring.
	kept := pfns[:0]
	for _, pfn := range pfns {
		a := uint64(pfn) << pageBits
		if _, err := s.mem.Slice(guestmem.GPA(a), PageSize); err != nil {
			s.d.counters.outside.Add(1)
			continue
		}
		if overlaps(s.own, span{a, a + PageSize}) {
			s.d.counters.ownRing.Add(1)
			continue
		}
		kept = append(kept, pfn)
	}
	for len(kept) > 0 {
		r, n := run(kept)
		kept = kept[n:]
		if s.discard(r) {
			s.d.counters.inflated.Add(uint64(n))
		}
	}
	return false
}

// deflate only counts: a page comes back by being touched.
func (s *server) deflate(c *queue.Chain) bool {
	pfns, rest := s.pages.parse(c.Readable)
	if rest {
		s.d.counters.oversized.Add(1)
	}
	s.d.counters.deflated.Add(uint64(len(pfns)))
	return false
}

// report gives the ranges back that the guest says are free: the chain's buffers, virtio 1.2 §5.5.6.7.
func (s *server) report(c *queue.Chain) bool {
	c.Untouched()
	for _, b := range c.Writable {
		at, ok := address(s.mem, b)
		r := span{(at + PageSize - 1) &^ (PageSize - 1), (at + uint64(len(b))) &^ (PageSize - 1)}
		switch {
		case !ok || r.from >= r.to:
			s.d.counters.outside.Add(1)
		case overlaps(s.own, r):
			s.d.counters.ownRing.Add(1)
		case s.discard(r):
			s.d.counters.reported.Add((r.to - r.from) / PageSize)
		}
	}
	return false
}

func (s *server) discard(r span) bool {
	if err := s.d.backend.Discard(guestmem.GPA(r.from), r.to-r.from); err != nil {
		s.d.counters.failed.Add(1)
		return false
	}
	return true
}

// serveStats makes s the server of the statistics queue, shared with those who ask for statistics.
func (s *server) serveStats() {
	st := &s.d.stats
	s.mu = &st.mu
	st.mu.Lock()
	defer st.mu.Unlock()
	st.q, st.used = s.q, s.used
	s.end = func() {
		st.request()
		st.q, st.used = nil, nil
	}
}

// takeStats reads a buffer of statistics and holds the chain until somebody asks for newer ones.
func (s *server) takeStats(c *queue.Chain) bool {
	s.d.counters.statistics.Add(1)
	s.d.stats.take(c.Head, parseStats(c.Readable))
	return true
}
