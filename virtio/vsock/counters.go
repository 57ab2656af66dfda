package vsock

import "sync/atomic"

// counters are what a guest can move. Each counts packets unless it says otherwise.
type counters struct {
	malformed   atomic.Uint64 // chains too short for a header, or unusable
	forged      atomic.Uint64 // with a source that is not the guest, or a reset that is for nobody
	refused     atomic.Uint64 // answered with a reset before any connection was looked at
	unknown     atomic.Uint64 // for no connection
	violations  atomic.Uint64 // connections reset because the guest broke the protocol
	overrun     atomic.Uint64 // of these, for bytes beyond the credit given
	implausible atomic.Uint64 // with a fwd_cnt that was not believed
	limited     atomic.Uint64 // connections refused at the limit
	evicted     atomic.Uint64 // closed connections forgotten early to make room
	expired     atomic.Uint64 // connections that nobody answered in time
	lost        atomic.Uint64 // resets that there was no room to send
	toGuest     atomic.Uint64 // stream bytes
	toHost      atomic.Uint64 // stream bytes
}

func (c *counters) snapshot() map[string]uint64 {
	return map[string]uint64{
		"malformed":   c.malformed.Load(),
		"forged":      c.forged.Load(),
		"refused":     c.refused.Load(),
		"unknown":     c.unknown.Load(),
		"violations":  c.violations.Load(),
		"overrun":     c.overrun.Load(),
		"implausible": c.implausible.Load(),
		"limited":     c.limited.Load(),
		"evicted":     c.evicted.Load(),
		"expired":     c.expired.Load(),
		"lost":        c.lost.Load(),
		"to_guest":    c.toGuest.Load(),
		"to_host":     c.toHost.Load(),
	}
}
