package stack

import "sync/atomic"

// Stats are the figures of a stack since it was made.
type Stats struct {
	FromGuest, ToGuest Traffic // frames
	Sent, Received     uint64  // bytes of payload, to and from destinations

	Malformed, Spoofed, Unwanted, Overload uint64 // frames from the guest that went nowhere
	Dropped                                uint64 // frames that the guest did not take in time

	Denied  uint64 // flows
	Failed  uint64 // flows that were allowed, and whose destination did not answer
	Flows   uint64 // allowed
	Open    int    // now
	Queries uint64 // to the resolver
}

// Traffic counts frames and their bytes, without the header before each.
type Traffic struct{ Packets, Bytes uint64 }

type counters struct {
	fromGuest, toGuest                     traffic
	sent, received                         atomic.Uint64
	malformed, spoofed, unwanted, overload atomic.Uint64
	dropped, denied, failed, flows         atomic.Uint64
	queries                                atomic.Uint64
}

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(n int) {
	t.packets.Add(1)
	t.bytes.Add(uint64(max(0, n-vnetSize)))
}

func (t *traffic) load() Traffic { return Traffic{t.packets.Load(), t.bytes.Load()} }

// Stats returns the figures so far.
func (s *Stack) Stats() Stats {
	c := &s.count
	return Stats{
		FromGuest: c.fromGuest.load(), ToGuest: c.toGuest.load(), Sent: c.sent.Load(), Received: c.received.Load(),
		Malformed: c.malformed.Load(), Spoofed: c.spoofed.Load(), Unwanted: c.unwanted.Load(), Overload: c.overload.Load(),
		Dropped: c.dropped.Load(), Denied: c.denied.Load(), Failed: c.failed.Load(), Flows: c.flows.Load(), Open: s.flows.open(),
		Queries: c.queries.Load(),
	}
}
