package pmem

import "sync/atomic"

// counters are what a guest can move. They only grow.
type counters struct {
	flushes   atomic.Uint64 // requests answered with success
	malformed atomic.Uint64 // chains answered with an error or not at all
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	return map[string]uint64{
		"flushes":   d.counters.flushes.Load(),
		"malformed": d.counters.malformed.Load(),
	}
}
