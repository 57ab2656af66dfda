package balloon

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"spore/virtio/queue"
)

// StatTag names one statistic, virtio 1.2 §5.5.6.4.
type StatTag uint16

// The statistics. Faults are counts, the rest bytes, unless said otherwise.
const (
	StatSwapIn       StatTag = 0
	StatSwapOut      StatTag = 1
	StatMajorFaults  StatTag = 2
	StatMinorFaults  StatTag = 3
	StatFree         StatTag = 4
	StatTotal        StatTag = 5
	StatAvailable    StatTag = 6
	StatCaches       StatTag = 7
	StatHugetlbAlloc StatTag = 8 // count of successful allocations
	StatHugetlbFail  StatTag = 9 // count of failed ones
	statTags                 = 10
)

var statNames = [statTags]string{
	"swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "caches", "hugetlb_alloc", "hugetlb_fail",
}

const (
	statSize = 10 // le16 tag, le64 value, packed
	// maxStats bounds the statistics read of one buffer: more tags than are defined, for drivers newer than us.
	maxStats = 32
)

// Stats is what the guest last said of its memory. It is the guest's word and proves nothing. The zero value is "nothing yet".
type Stats struct {
	Updates uint64 // how many times the guest has sent statistics since the device was made
	values  [statTags]uint64
	known   uint16 // bit n: values[n] was sent
}

// Get returns one statistic and whether the guest sent it.
func (s Stats) Get(tag StatTag) (uint64, bool) {
	if tag >= statTags || s.known&(1<<tag) == 0 {
		return 0, false
	}
	return s.values[tag], true
}

// Map returns what the guest sent, by name.
func (s Stats) Map() map[string]uint64 {
	m := make(map[string]uint64, statTags)
	for tag, name := range statNames {
		if v, ok := s.Get(StatTag(tag)); ok {
			m[name] = v
		}
	}
	return m
}

// parseStats reads one buffer of statistics; what it does not know, it skips. Guest memory is read once.
func parseStats(readable [][]byte) (s Stats) {
	var raw [maxStats * statSize]byte
	b := raw[:gather(raw[:], readable)]
	for ; len(b) >= statSize; b = b[statSize:] {
		tag := binary.LittleEndian.Uint16(b)
		if tag < statTags {
			s.values[tag] = binary.LittleEndian.Uint64(b[2:])
			s.known |= 1 << tag
		}
	}
	return s
}

// gather copies from bufs into p and returns the bytes copied.
func gather(p []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if n == len(p) {
			break
		}
		n += copy(p[n:], b)
	}
	return n
}

// statistics is the state of the statistics queue. The driver hands over a buffer of statistics; giving it back
// asks for newer ones (virtio 1.2 §5.5.6.3).
type statistics struct {
	mu    sync.Mutex // also over q while Run runs
	last  Stats
	fresh chan struct{} // closed and replaced at each update
	q     *queue.Queue  // nil: not running or not negotiated
	used  func()
	held  bool // head is the driver's buffer, not given back yet
	head  uint16
}

func (s *statistics) init() { s.fresh = make(chan struct{}) }

// Stats returns the guest's latest statistics and asks it for newer ones, without waiting for them: called now and
// then, it is one call behind.
func (d *Device) Stats() Stats {
	d.stats.mu.Lock()
	defer d.stats.mu.Unlock()
	d.stats.request()
	return d.stats.last
}

// PollStats asks the guest for statistics and waits for them. An error means that ctx ended first; the statistics
// are then the latest there are.
func (d *Device) PollStats(ctx context.Context) (Stats, error) {
	d.stats.mu.Lock()
	fresh := d.stats.fresh
	d.stats.request()
	d.stats.mu.Unlock()
	var err error
	select {
	case <-fresh:
	case <-ctx.Done():
		err = fmt.Errorf("poll balloon statistics: %w", context.Cause(ctx))
	}
	d.stats.mu.Lock()
	defer d.stats.mu.Unlock()
	return d.stats.last, err
}

// request gives the held buffer back. While the driver has it, newer statistics are on their way already. The
// caller holds mu. A broken ring shows up in the queue's own goroutine too, which reports it.
func (s *statistics) request() {
	if !s.held {
		return
	}
	s.held = false
	if s.q.Push(s.head, 0) == nil && s.q.NeedsInterrupt() {
		s.used()
	}
}

// take stores the statistics of a new buffer and holds it. One held already is given back first: there should be
// one only. The caller holds mu.
func (s *statistics) take(head uint16, fresh Stats) {
	s.request()
	fresh.Updates = s.last.Updates + 1
	s.last, s.held, s.head = fresh, true, head
	close(s.fresh)
	s.fresh = make(chan struct{})
}
