package vsock

// sendCredit bounds what is sent to the guest: never more than the guest has room for. All counts are modulo 2³² as
// in the protocol. Nothing is allocated from a number of the guest's, and no number of its makes free negative.
type sendCredit struct {
	sent  uint32 // stream bytes sent
	acked uint32 // the last fwd_cnt that was believed; sent-acked is in the guest's buffer or under way
	alloc uint32 // the guest's buf_alloc
}

// update takes the credit of a packet from the guest. A fwd_cnt of bytes that were never sent is not believed, nor is
// one behind the last: packets of several guest threads may overtake one another. It reports whether it was believed.
func (c *sendCredit) update(n credit) bool {
	c.alloc = n.bufAlloc
	if n.fwdCnt-c.acked > c.sent-c.acked {
		return false
	}
	c.acked = n.fwdCnt
	return true
}

// free is how many bytes may be sent now. The guest may shrink its buffer below what is under way: that is 0.
func (c *sendCredit) free() uint32 {
	underway := c.sent - c.acked
	if underway >= c.alloc {
		return 0
	}
	return c.alloc - underway
}

// take accounts for n bytes sent, at most what free said before they were read. The guest may have shrunk its buffer
// since, so that free says less now.
func (c *sendCredit) take(n uint32) { c.sent += n }

// receiveCredit bounds what the guest sends: never more than size bytes that the host has not taken yet.
type receiveCredit struct {
	size      uint32 // our buf_alloc; never changes
	received  uint32 // stream bytes that came from the guest
	forwarded uint32 // of these, taken by the host: our fwd_cnt
	told      uint32 // the fwd_cnt that the guest was last told
}

// admit accounts for n bytes from the guest. It reports false, and does nothing, where they exceed the guest's credit.
func (c *receiveCredit) admit(n uint32) bool {
	if n > c.size-c.held() {
		return false
	}
	c.received += n
	return true
}

// held is how many bytes were received and not forwarded. It is at most size.
func (c *receiveCredit) held() uint32 { return c.received - c.forwarded }

// forward accounts for n bytes, at most held, that the host took.
func (c *receiveCredit) forward(n uint32) {
	if n > c.held() {
		panic("bug: forwarded more than was received")
	}
	c.forwarded += n
}

// due reports whether the guest should be told of room it does not know of: half the buffer, so that it neither
// stalls nor gets a packet for each of its own.
func (c *receiveCredit) due() bool { return c.forwarded-c.told >= c.size/2 }

// tell is the credit for a packet to the guest.
func (c *receiveCredit) tell() credit {
	c.told = c.forwarded
	return credit{bufAlloc: c.size, fwdCnt: c.forwarded}
}
