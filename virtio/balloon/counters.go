package balloon

import "sync/atomic"

// counters are what a guest can move. They only grow.
type counters struct {
	inflated, deflated, reported atomic.Uint64 // pages
	statistics                   atomic.Uint64 // buffers of statistics received
	outside                      atomic.Uint64 // page numbers and ranges outside RAM
	ownRing                      atomic.Uint64 // page numbers and ranges that hold the device's own queues
	oversized                    atomic.Uint64 // chains with more than maxPFNs page numbers
	malformed                    atomic.Uint64 // malformed chains
	failed                       atomic.Uint64 // ranges the host did not take back
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	c := &d.counters
	return map[string]uint64{
		"inflated_pages": c.inflated.Load(),
		"deflated_pages": c.deflated.Load(),
		"reported_pages": c.reported.Load(),
		"statistics":     c.statistics.Load(),
		"outside":        c.outside.Load(),
		"own_ring":       c.ownRing.Load(),
		"oversized":      c.oversized.Load(),
		"malformed":      c.malformed.Load(),
		"failed":         c.failed.Load(),
		"target_pages":   uint64(d.target.Load()),
		"actual_pages":   uint64(d.actual.Load()),
	}
}
