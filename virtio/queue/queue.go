// Package queue is the split virtqueue (virtio 1.2 §2.7), seen from the device. It is the only code that
// touches ring memory. Whatever the driver writes there, a queue's methods end, stay inside guest memory and
// read each descriptor once.
package queue

import (
	"errors"
	"fmt"
	"os"
	"time"

	"spore/guestmem"
)

// Sizes of a queue in descriptors.
const (
	MaxSize   = 256  // what devices offer unless they have a reason
	LimitSize = 1024 // what New accepts at most
)

// Errors of Pop.
var (
	// ErrChain says that the driver made an impossible chain. It must be pushed with nothing written.
	ErrChain = errors.New("malformed descriptor chain")
	// ErrRing says that the ring itself makes no sense: the device cannot go on and needs a reset.
	ErrRing = errors.New("malformed ring")
)

// State is what a snapshot keeps of a queue. It is untrusted: only New makes a Queue of it.
type State struct {
	Size      uint16       `json:"size"` // descriptors; a power of two, at most LimitSize
	Ready     bool         `json:"ready"`
	Desc      guestmem.GPA `json:"desc"`  // descriptor table, 16-byte aligned
	Avail     guestmem.GPA `json:"avail"` // available ring ("driver area"), 2-byte aligned
	Used      guestmem.GPA `json:"used"`  // used ring ("device area"), 4-byte aligned
	NextAvail uint16       `json:"next_avail"`
	NextUsed  uint16       `json:"next_used"`
}

// Features are the negotiated ones that change how a ring works.
type Features struct {
	Indirect bool // VIRTIO_F_INDIRECT_DESC
	EventIdx bool // VIRTIO_F_EVENT_IDX
}

// span is a range of guest addresses.
type span struct{ from, to guestmem.GPA }

func (s span) overlaps(a guestmem.GPA, n uint64) bool {
	return a < s.to && a+guestmem.GPA(n) > s.from
}

// Queue is one virtqueue in use. It belongs to one goroutine, the device's; only Wait's file may be shared.
type Queue struct {
	mem      *guestmem.Memory
	state    State
	features Features
	rings    [3]span  // the queue's own memory, where no buffer may lie
	inFlight []bool   // by head
	chains   []*Chain // not in use now
	used     []*Chain // by head: in use now
	signaled uint16   // NextUsed when NeedsInterrupt last looked
	flags    uint16   // of the used ring: 1 is "no kicks please"
	kick     kicks
}

// Bytes of the fixed parts of a ring, and of its elements.
const (
	descSize    = 16
	ringHeader  = 4 // flags, idx
	availSize   = 2
	usedSize    = 8
	eventSize   = 2
	noKicks     = 1 // VIRTQ_USED_F_NO_NOTIFY
	noInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
)

// New validates s and makes a queue of it. kick is the eventfd that the driver's kicks arrive on, in
// non-blocking mode; it stays the caller's. With nil, Wait is woken by Kick instead.
func New(mem *guestmem.Memory, s State, f Features, kick *os.File) (*Queue, error) {
	if s.Size == 0 || s.Size&(s.Size-1) != 0 || s.Size > LimitSize {
		return nil, fmt.Errorf("make queue: size %d: want a power of two up to %d", s.Size, LimitSize)
	}
	size := uint64(s.Size)
	q := &Queue{mem: mem, state: s, features: f, signaled: s.NextUsed}
	for i, r := range []struct {
		name  string
		at    guestmem.GPA
		align guestmem.GPA
		n     uint64
	}{
		{"descriptor table", s.Desc, 16, size * descSize},
		{"available ring", s.Avail, 2, ringHeader + size*availSize + eventSize},
		{"used ring", s.Used, 4, ringHeader + size*usedSize + eventSize},
	} {
		if _, err := mem.Slice(r.at, r.n); err != nil || r.at%r.align != 0 {
			return nil, fmt.Errorf("make queue: %s at %#x: %w", r.name, r.at, guestmem.ErrRange)
		}
		q.rings[i] = span{r.at, r.at + guestmem.GPA(r.n)}
	}
	q.inFlight, q.used = make([]bool, s.Size), make([]*Chain, s.Size)
	q.kick = kicks{file: kick, wake: make(chan struct{}, 1), first: true}
	if kick != nil {
		// Also takes back what an interrupted Wait may have left. A file without deadlines could not be interrupted.
		if err := kick.SetReadDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("make queue: kicks cannot be waited for: %w", err)
		}
	}
	return q, nil
}

// State returns what New needs to go on where this queue is. No chain may be in flight.
func (q *Queue) State() State { return q.state }

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { return q.state.Size }

// must unwraps an access to ring memory: New has checked that it is inside guest memory, which never changes.
func must[T any](v T, err error) T {
	if err != nil {
		panic("bug: ring memory moved: " + err.Error())
	}
	return v
}

// Pending reports whether the driver has made a chain available that Pop has not taken.
func (q *Queue) Pending() bool {
	return must(q.mem.LoadUint16(q.state.Avail+2)) != q.state.NextAvail
}

// Pop returns the next available chain, or nil when there is none. A malformed chain is returned with
// ErrChain and must still be pushed. An available entry that names no descriptor is passed over. After ErrRing
// the queue is of no more use.
func (q *Queue) Pop() (*Chain, error) {
	for {
		// The driver publishes entries by the index (virtio 1.2 §2.7.13.3): this load acquires them.
		idx := must(q.mem.LoadUint16(q.state.Avail + 2))
		pending := idx - q.state.NextAvail
		if pending == 0 {
			return nil, nil
		}
		if pending > q.state.Size {
			return nil, fmt.Errorf("%w: %d entries available in a ring of %d", ErrRing, pending, q.state.Size)
		}
		at := q.state.NextAvail
		slot := at & (q.state.Size - 1)
		head := must(q.mem.LoadUint16(q.state.Avail + ringHeader + availSize*guestmem.GPA(slot)))
		q.state.NextAvail++
		if head >= q.state.Size {
			continue // Q-02; at most Size times, since pending shrinks
		}
		if q.inFlight[head] {
			// Two requests under one head could complete into each other's buffers (Q-07, CVE-2026-45782).
			return nil, fmt.Errorf("%w: descriptor %d is already in flight", ErrRing, head)
		}
		return q.take(head, at)
	}
}

// take walks the chain at head, whose entry in the available ring is that of index at.
func (q *Queue) take(head, at uint16) (*Chain, error) {
	var c *Chain
	if n := len(q.chains); n > 0 {
		c, q.chains = q.chains[n-1], q.chains[:n-1]
	} else {
		c = new(Chain)
	}
	q.inFlight[head], q.used[head] = true, c
	c.reset(head)
	c.at = at
	if !q.walk(c, q.state.Desc, q.state.Size, head, false) {
		c.reset(head)
		c.at = at
		return c, ErrChain
	}
	return c, nil
}

// Return undoes the Pop of c, the last of all that were popped and not returned: it is available again, as if it had never been
// taken, and must not be used any more. For a device that stops with buffers that it has not filled.
func (q *Queue) Return(c *Chain) {
	if next := c.at + 1; q.used[c.Head] != c || next != q.state.NextAvail && !q.passedOver(next) {
		panic("bug: a chain returned that was not the last")
	}
	for _, w := range c.places { // a frame that was given up may be in it
		q.mem.Wrote(w.from, uint64(w.to-w.from))
	}
	q.inFlight[c.Head], q.used[c.Head] = false, nil
	q.chains = append(q.chains, c)
	q.state.NextAvail = c.at
}

// passedOver reports whether every chain that was available from at on has come and gone.
func (q *Queue) passedOver(at uint16) bool {
	for _, c := range q.used {
		if c != nil && c.at-at < q.state.NextAvail-at {
			return false
		}
	}
	return true
}

// Push gives the chain of head back with the number of bytes that the device wrote to it, which is capped by
// what the chain can hold. The chain must not be used afterwards. A head that is not in flight is ErrRing.
func (q *Queue) Push(head uint16, written uint32) error {
	if err := q.Stage(head, written); err != nil {
		return err
	}
	q.Publish()
	return nil
}

// Stage is Push that the driver does not see before Publish: for chains that it must see together, or soon enough together. All
// must be published before the device looks at NeedsInterrupt or stops.
func (q *Queue) Stage(head uint16, written uint32) error {
	if head >= q.state.Size || !q.inFlight[head] {
		return fmt.Errorf("%w: descriptor %d is not in flight", ErrRing, head)
	}
	c := q.used[head]
	written = uint32(min(uint64(written), c.WritableLen()))
	for _, w := range c.places { // all of it: what a device says it wrote is what the driver may believe, not what it touched
		q.mem.Wrote(w.from, uint64(w.to-w.from))
	}
	q.inFlight[head], q.used[head] = false, nil
	q.chains = append(q.chains, c)
	at := q.state.Used + ringHeader + usedSize*guestmem.GPA(q.state.NextUsed&(q.state.Size-1))
	check(q.mem.StoreUint32(at, uint32(head)))
	check(q.mem.StoreUint32(at+4, written))
	q.state.NextUsed++
	return nil
}

// Publish shows the driver all that was staged.
func (q *Queue) Publish() { q.publish() }

func check(err error) { must(struct{}{}, err) }

// publish writes flags and index of the used ring in one store, which releases the elements before it. Both
// belong to the device, so nothing of the driver's is overwritten.
func (q *Queue) publish() {
	check(q.mem.StoreUint32(q.state.Used, uint32(q.flags)|uint32(q.state.NextUsed)<<16))
}

// NeedsInterrupt reports whether the driver wants the used-buffer interrupt for what was pushed since the last
// call (virtio 1.2 §2.7.7, §2.7.10). Call it once after a batch of pushes. The store in Push was a full fence,
// so the driver's wish is read after the index was published.
func (q *Queue) NeedsInterrupt() bool {
	before, now := q.signaled, q.state.NextUsed
	q.signaled = now
	if before == now {
		return false
	}
	if !q.features.EventIdx {
		return must(q.mem.LoadUint16(q.state.Avail))&noInterrupt == 0
	}
	event := must(q.mem.LoadUint16(q.state.Avail + ringHeader + availSize*guestmem.GPA(q.state.Size)))
	return now-event-1 < now-before
}

// DisableKicks asks the driver not to kick while the device looks at the ring anyway.
func (q *Queue) DisableKicks() {
	if q.features.EventIdx {
		return // the event index stays behind, which says the same
	}
	q.flags = noKicks
	q.publish()
}

// EnableKicks asks for a kick at the next available chain, and reports whether there is one already, which no
// kick will announce. The store is a full fence before the look.
func (q *Queue) EnableKicks() (more bool) {
	if q.features.EventIdx {
		at := q.state.Used + ringHeader + usedSize*guestmem.GPA(q.state.Size)
		check(q.mem.StoreUint16(at, q.state.NextAvail))
	} else {
		q.flags = 0
		q.publish()
	}
	return must(q.mem.LoadUint16(q.state.Avail+2)) != q.state.NextAvail
}
