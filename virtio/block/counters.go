package block

import "sync/atomic"

// counters are what a guest can move. They only grow.
type counters struct {
	reads, writes, flushes, discards, zeroes, others atomic.Uint64 // requests answered, by type
	readBytes, writtenBytes                          atomic.Uint64
	ioErrors, unsupported                            atomic.Uint64 // requests answered so
	malformed                                        atomic.Uint64 // chains without an answer
	throttled                                        atomic.Uint64 // waits for the rate limit
	waited                                           atomic.Uint64 // requests that went to a worker
}

// count counts one answered request.
func (c *counters) count(r *request, status byte) {
	switch r.kind {
	case typeIn:
		c.reads.Add(1)
		c.readBytes.Add(r.done)
	case typeOut:
		c.writes.Add(1)
		c.writtenBytes.Add(r.done)
	case typeFlush:
		c.flushes.Add(1)
	case typeDiscard:
		c.discards.Add(1)
	case typeWriteZeroes:
		c.zeroes.Add(1)
	default:
		c.others.Add(1)
	}
	switch status {
	case statusIOError:
		c.ioErrors.Add(1)
	case statusUnsupported:
		c.unsupported.Add(1)
	}
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	c := &d.counters
	return map[string]uint64{
		"reads":         c.reads.Load(),
		"writes":        c.writes.Load(),
		"flushes":       c.flushes.Load(),
		"discards":      c.discards.Load(),
		"write_zeroes":  c.zeroes.Load(),
		"others":        c.others.Load(),
		"read_bytes":    c.readBytes.Load(),
		"written_bytes": c.writtenBytes.Load(),
		"io_errors":     c.ioErrors.Load(),
		"unsupported":   c.unsupported.Load(),
		"malformed":     c.malformed.Load(),
		"throttled":     c.throttled.Load(),
		"waited":        c.waited.Load(),
	}
}
