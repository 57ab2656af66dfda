package stack

import (
	"sync"
	"sync/atomic"
	"time"

	"spore/network/policy"
)

// What a TCP flow may have on the way in each direction, in bytes. How much it is depends on how many others there are.
const (
	flowBufferMin = 16 << 10
	flowBufferMax = 1 << 20
)

const (
	timeWait = 100 * time.Millisecond // nothing on this link arrives late
	closing  = 30 * time.Second       // for the guest to take what is left, once a connection has ended
)

// flow is one connection or run of datagrams.
type flow struct {
	policy.Flow
	began          time.Time
	idle           time.Duration
	sent, received atomic.Uint64
	last           atomic.Int64 // seconds of the table's clock at the last byte

	once  sync.Once
	done  chan struct{} // closed when it is to end
	abort func()        // makes what waits for its descriptors return; set before anybody else knows the flow
}

// stop makes the flow end.
func (f *flow) stop() {
	f.once.Do(func() {
		close(f.done)
		f.abort()
	})
}

// flows is all that are open. Each belongs to the goroutine that asked for it, which gives it back.
type flows struct {
	limits Limits
	count  *counters
	clock  atomic.Int64 // seconds since init, roughly

	mu     sync.Mutex
	all    map[*flow]struct{}
	closed bool
	shutCh chan struct{}
	gone   sync.WaitGroup
}

func (t *flows) init(l Limits, c *counters) {
	t.limits, t.count, t.all, t.shutCh = l, c, map[*flow]struct{}{}, make(chan struct{})
}

// add makes a flow, or returns nil when there are too many. The caller calls remove.
func (t *flows) add(pf policy.Flow, idle time.Duration, abort func()) *flow {
	f := &flow{Flow: pf, began: time.Now(), idle: idle, done: make(chan struct{}), abort: abort}
	f.last.Store(t.clock.Load())
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.all) >= t.limits.Flows {
		return nil
	}
	t.all[f] = struct{}{}
	t.gone.Add(1)
	return f
}

func (t *flows) remove(f *flow) {
	f.stop()
	t.mu.Lock()
	delete(t.all, f)
	t.mu.Unlock()
	t.gone.Done()
}

func (t *flows) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// buffer is how much a new TCP flow may have on the way in each direction: its share of the memory, so that many flows have a
// little each and few have much. All that there can be together is some seven times Limits.Memory, if a full table has filled slowly and
// none of it moves.
func (t *flows) buffer() int {
	share := t.limits.Memory / int64(2*max(1, t.open()))
	return int(min(max(share, flowBufferMin), flowBufferMax))
}

// moved notes bytes of payload.
func (t *flows) moved(f *flow, sent, received int) {
	if sent > 0 {
		f.sent.Add(uint64(sent))
		t.count.sent.Add(uint64(sent))
	}
	if received > 0 {
		f.received.Add(uint64(received))
		t.count.received.Add(uint64(received))
	}
	if now := t.clock.Load(); f.last.Load() != now {
		f.last.Store(now)
	}
}

// sweep stops flows that nothing has moved in for too long. It runs until shut.
func (t *flows) sweep() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-t.shutCh:
			return
		case <-tick.C:
		}
		now := int64(time.Since(began) / time.Second)
		t.clock.Store(now)
		t.stop(func(f *flow) bool { return time.Duration(now-f.last.Load())*time.Second > f.idle })
	}
}

// stop stops those flows.
func (t *flows) stop(which func(*flow) bool) {
	t.mu.Lock()
	var list []*flow
	for f := range t.all {
		if which(f) {
			list = append(list, f)
		}
	}
	t.mu.Unlock()
	for _, f := range list {
		f.stop()
	}
}

func (t *flows) closeAll() { t.stop(func(*flow) bool { return true }) }

// shut closes all flows, and no more can be added.
func (t *flows) shut() {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.shutCh)
	}
	t.mu.Unlock()
	t.closeAll()
}

// wait waits until every flow was given back.
func (t *flows) wait() { t.gone.Wait() }
