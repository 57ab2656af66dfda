package net

import "sync/atomic"

// direction counts what went one way. The counters only grow.
type direction struct {
	frames, bytes atomic.Uint64 // that arrived; bytes without the header
	dropped       atomic.Uint64 // frames that did not, for whatever reason
	throttled     atomic.Uint64 // waits for the rate limit
}

// counters are what a guest and its network can move.
type counters struct {
	in, out   direction
	malformed atomic.Uint64 // chains of either queue that no frame can be in
	offload   atomic.Uint64 // frames of either direction dropped for an offload that was not negotiated, or makes no sense
	oversized atomic.Uint64 // frames from the guest dropped for their length; to the guest, for its buffers'
	waited    atomic.Uint64 // times a frame from the guest waited for the descriptor
	starved   atomic.Uint64 // times there was no buffer of the guest's to receive into
	failed    atomic.Uint64 // frames from the guest that the descriptor refused
}

// Counters are the device's counters by name. Any goroutine may ask, at any time.
func (d *Device) Counters() map[string]uint64 {
	c := &d.counters
	return map[string]uint64{
		"received_frames": c.in.frames.Load(), "received_bytes": c.in.bytes.Load(), "received_dropped": c.in.dropped.Load(), "received_throttled": c.in.throttled.Load(),
		"transmitted_frames": c.out.frames.Load(), "transmitted_bytes": c.out.bytes.Load(), "transmitted_dropped": c.out.dropped.Load(), "transmitted_throttled": c.out.throttled.Load(),
		"malformed": c.malformed.Load(), "bad_offload": c.offload.Load(), "oversized": c.oversized.Load(),
		"waited": c.waited.Load(), "starved": c.starved.Load(), "failed": c.failed.Load(),
	}
}
