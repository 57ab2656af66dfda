package block

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"spore/virtio"
	"spore/virtio/queue"
	"spore/virtio/rate"
)

const (
	// maxWorkers bounds the requests of one queue that wait for a disk at once.
	maxWorkers = 16
	// A batch of completions is shown to the driver at the latest after so many requests or bytes, so that the
	// guest works on the first while the device works on the rest.
	batchOps   = 16
	batchBytes = 256 << 10
	// shareBytes is from what size on requests are worth more than one processor, when there are several.
	shareBytes = 128 << 10
	// alignment is the offset and length of a write that the page cache takes without reading first.
	alignment = 4096
)

// server runs one queue. Its owner goroutine takes chains off the ring and executes what needs no waiting itself;
// the rest goes to workers. mu makes whoever has finished a request the queue's owner for the moment it takes to
// give the chain back.
//
// There are maxWorkers+1 requests and no more: that, not the guest, bounds what is in flight. The owner always
// holds one, or can take one: it hands a request over only while another is free. A chain that is offered again
// while it is in flight is the ring's end: the queue refuses it.
type server struct {
	d     *Device
	g     geometry
	index int
	used  func(queue int)
	stop  context.CancelFunc

	jobs chan *request // requests for the workers; has room for all of them
	wg   sync.WaitGroup

	mu   sync.Mutex
	q    *queue.Queue
	free []*request
	idle int   // workers that wait for a job
	err  error // the first error of the ring

	// Of the owner alone: completions it has not yet shown to the driver.
	ops, bytes uint64
}

func newServer(d *Device, a virtio.Active, index int) *server {
	s := &server{
		d:     d,
		g:     geometry{sectors: d.sectors, readOnly: d.readOnly, features: a.Features},
		index: index,
		used:  a.Used,
		jobs:  make(chan *request, maxWorkers),
		q:     a.Queues[index],
		free:  make([]*request, maxWorkers+1),
	}
	for i := range s.free {
		s.free[i] = new(request)
	}
	return s
}

// serve runs until ctx ends (nil) or the ring is broken. When it returns every chain taken is given back.
func (s *server) serve(ctx context.Context) error {
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	s.contained(func() { s.loop(ctx) })
	close(s.jobs)
	s.wg.Wait()
	return s.err
}

// contained runs f and turns a panic in it, which would be our mistake, into the end of this queue: it costs the
// guest its disk and not the process its other work.
func (s *server) contained(f func()) {
	defer func() {
		if p := recover(); p != nil {
			s.fail(fmt.Errorf("block panicked: %v\n%s", p, debug.Stack()))
		}
	}()
	f()
}

func (s *server) loop(ctx context.Context) {
	for {
		if err := s.q.Wait(ctx); err != nil {
			if ctx.Err() == nil {
				s.fail(fmt.Errorf("wait for kicks: %w", err))
			}
			return
		}
		for more := true; more && ctx.Err() == nil; {
			s.disableKicks()
			if !s.drain(ctx) {
				return
			}
			more = s.enableKicks()
		}
	}
}

// drain executes requests until the ring is empty, true, or it must not go on, false.
func (s *server) drain(ctx context.Context) bool {
	defer s.show()
	for ctx.Err() == nil {
		if l := s.d.limit; l != nil && !s.throttle(ctx, l) {
			return false
		}
		r, empty, ok := s.next()
		if empty || !ok {
			return ok
		}
		if r != nil {
			s.handle(r)
		}
		if s.ops >= batchOps || s.bytes >= batchBytes {
			s.show()
		}
	}
	return false
}

// throttle waits for the rate limit before a chain is taken. It returns false when ctx ends first.
func (s *server) throttle(ctx context.Context, l *rate.Limiter) bool {
	for {
		wait := l.Delay()
		if wait == 0 {
			return true
		}
		s.show()
		s.d.counters.throttled.Add(1)
		select {
		case <-ctx.Done():
			return false
		case <-s.d.clock.After(wait):
		}
	}
}

// next takes one chain off the ring and parses it. What needs only an answer gets it, and r is nil.
func (s *server) next() (r *request, empty, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, false, false
	}
	c, err := s.q.Pop()
	switch {
	case err != nil && !errors.Is(err, queue.ErrChain):
		s.err = err
		return nil, false, false
	case c == nil:
		return nil, true, true
	}
	s.ops++
	if err != nil {
		s.d.counters.malformed.Add(1)
		return nil, false, s.push(c.Head, 0)
	}
	r = s.free[len(s.free)-1]
	v, status := r.parse(s.g, c.Head, c.Readable, c.Writable)
	switch v {
	case verdictMalformed:
		s.d.counters.malformed.Add(1)
		return nil, false, s.push(c.Head, 0)
	case verdictAnswer:
		s.d.counters.count(r, status)
		return nil, false, s.push(c.Head, r.finish(status))
	}
	s.free = s.free[:len(s.free)-1]
	return r, false, true
}

// handle executes r here if that needs no waiting, and lets a worker do it otherwise.
func (s *server) handle(r *request) {
	if s.d.limit != nil {
		s.d.limit.Take(r.left)
	}
	n := r.left
	if !s.slow(r) && !(n >= shareBytes && s.more()) {
		status, again := s.d.execute(r, s.g, true)
		if !again {
			s.finish(r, status, false)
			s.bytes += n
			return
		}
	}
	if s.dispatch(r) {
		s.ops--
		return
	}
	s.show() // the guest need not wait for this one to see the others
	status, _ := s.d.execute(r, s.g, false)
	s.finish(r, status, false)
	s.ops, s.bytes = s.ops+1, s.bytes+n
}

// slow says whether r surely waits for a disk.
func (s *server) slow(r *request) bool {
	switch r.kind {
	case typeIn, typeGetID:
		return false
	case typeOut:
		return s.g.features&featureFlush == 0 || (uint64(r.offset)|r.left)%alignment != 0
	}
	return true
}

// more reports whether the driver has made another chain available already.
func (s *server) more() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Pending()
}

// dispatch gives r to a worker unless it holds the last request.
func (s *server) dispatch(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == 0 {
		return false
	}
	if s.idle > 0 {
		s.idle--
	} else {
		// At most maxWorkers: all that are started are busy, each with one of the requests.
		s.wg.Go(func() { s.contained(s.work) })
	}
	s.d.counters.waited.Add(1)
	s.jobs <- r // never full
	return true
}

// work is one worker: it executes requests until there are no more to come.
func (s *server) work() {
	for r := range s.jobs {
		status, _ := s.d.execute(r, s.g, false)
		if s.finish(r, status, true) {
			s.used(s.index)
		}
	}
}

// finish gives r's chain back. For a worker it also says whether to raise the interrupt; the owner asks later, for
// many at once.
func (s *server) finish(r *request, status byte, worker bool) (interrupt bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.d.counters.count(r, status)
	s.free = append(s.free, r)
	s.push(r.head, r.finish(status))
	if !worker {
		return false
	}
	s.idle++
	return s.q.NeedsInterrupt()
}

// push gives a chain back and reports whether the ring took it. The caller holds mu.
func (s *server) push(head uint16, written uint32) bool {
	if err := s.q.Push(head, written); err != nil && s.err == nil {
		s.err = err
		s.stop()
	}
	return s.err == nil
}

// fail ends the queue with an error.
func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.stop()
}

func (s *server) disableKicks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.q.DisableKicks()
}

func (s *server) enableKicks() (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.EnableKicks()
}

func (s *server) needsInterrupt() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.NeedsInterrupt()
}

// show raises the interrupt for what the owner has given back since the last time, if the driver wants one.
func (s *server) show() {
	if s.ops == 0 {
		return
	}
	s.ops, s.bytes = 0, 0
	if s.needsInterrupt() {
		s.used(s.index)
	}
}
