package queue

import (
	"encoding/binary"

	"spore/guestmem"
)

// Descriptor flags (virtio 1.2 §2.7.5).
const (
	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4
)

// Chain is one request: buffers the device reads, then buffers it writes. They are guest memory, checked to be
// inside it; the guest may change their content at any time. The split into buffers means nothing
// (virtio 1.2 §2.7.4.1), so most devices use Read and Write.
type Chain struct {
	Head     uint16
	Readable [][]byte
	Writable [][]byte

	readable, writable uint64 // sums of the lengths
	places             []span // of Writable
	at                 uint16 // index of its entry in the available ring
	read               cursor
	write              cursor
}

// cursor is a place in a list of buffers.
type cursor struct{ buffer, offset int }

func (c *Chain) reset(head uint16) {
	*c = Chain{Head: head, Readable: c.Readable[:0], Writable: c.Writable[:0], places: c.places[:0]}
}

// Untouched says that the device writes nothing to the writable buffers: a device to which they are no place to write to, but
// what the request is about.
func (c *Chain) Untouched() { c.places = c.places[:0] }

// ReadableLen is the number of bytes the device may read, at most 2^32-1.
func (c *Chain) ReadableLen() uint64 { return c.readable }

// WritableLen is the number of bytes the device may write, at most 2^32-1.
func (c *Chain) WritableLen() uint64 { return c.writable }

// Read copies the next bytes of the readable buffers into p and returns how many there were.
func (c *Chain) Read(p []byte) int {
	n := 0
	for n < len(p) {
		b := c.read.rest(c.Readable)
		if b == nil {
			break
		}
		k := copy(p[n:], b)
		n += k
		c.read.offset += k
	}
	return n
}

// Write copies p into the next bytes of the writable buffers and returns how many fitted.
func (c *Chain) Write(p []byte) int {
	n := 0
	for n < len(p) {
		b := c.write.rest(c.Writable)
		if b == nil {
			break
		}
		k := copy(b, p[n:])
		n += k
		c.write.offset += k
	}
	return n
}

// rest returns the unused bytes of the buffer at the cursor, moving on from used-up ones; nil at the end.
func (k *cursor) rest(buffers [][]byte) []byte {
	for k.buffer < len(buffers) {
		if b := buffers[k.buffer]; k.offset < len(b) {
			return b[k.offset:]
		}
		k.buffer, k.offset = k.buffer+1, 0
	}
	return nil
}

// descriptor is a private copy of struct virtq_desc.
type descriptor struct {
	addr  guestmem.GPA
	len   uint32
	flags uint16
	next  uint16
}

// load reads the descriptor at a once, as two words: what is judged is what is used.
func (q *Queue) load(a guestmem.GPA) (descriptor, bool) {
	addr, err1 := q.mem.LoadUint64(a)
	rest, err2 := q.mem.LoadUint64(a + 8)
	return descriptor{guestmem.GPA(addr), uint32(rest), uint16(rest >> 32), uint16(rest >> 48)}, err1 == nil && err2 == nil
}

// loadIndirect reads a descriptor of an indirect table, which may lie at any address.
func (q *Queue) loadIndirect(a guestmem.GPA) (descriptor, bool) {
	if a%8 == 0 {
		return q.load(a)
	}
	var b [descSize]byte
	if q.mem.ReadAt(b[:], a) != nil {
		return descriptor{}, false
	}
	le := binary.LittleEndian
	return descriptor{guestmem.GPA(le.Uint64(b[:])), le.Uint32(b[8:]), le.Uint16(b[12:]), le.Uint16(b[14:])}, true
}

// walk adds the buffers of the list that begins at index i of a table with n descriptors. The table is the
// queue's own or, once at the end of it, an indirect one. A list is at most as long as the queue, so a
// cycle ends. It reports whether the chain is well-formed.
func (q *Queue) walk(c *Chain, table guestmem.GPA, n, i uint16, indirect bool) bool {
	for steps := uint16(0); ; steps++ {
		if i >= n || steps >= n {
			return false
		}
		var d descriptor
		var ok bool
		if indirect {
			d, ok = q.loadIndirect(table + descSize*guestmem.GPA(i))
		} else {
			d, ok = q.load(table + descSize*guestmem.GPA(i))
		}
		if !ok {
			return false
		}
		if d.flags&flagIndirect != 0 {
			return !indirect && q.walkIndirect(c, d)
		}
		if !q.add(c, d) {
			return false
		}
		if d.flags&flagNext == 0 {
			return true
		}
		i = d.next
	}
}

// walkIndirect follows an indirect descriptor, the last of its chain (virtio 1.2 §2.7.5.3, Q-05).
func (q *Queue) walkIndirect(c *Chain, d descriptor) bool {
	n := d.len / descSize
	if !q.features.Indirect || d.flags&(flagNext|flagWrite) != 0 || d.len%descSize != 0 || n == 0 || n > uint32(q.state.Size) {
		return false
	}
	if _, err := q.mem.Slice(d.addr, uint64(d.len)); err != nil {
		return false
	}
	return q.walk(c, d.addr, uint16(n), 0, true)
}

// maxChain bounds the sum of a chain's lengths, in bytes: the used ring counts in 32 bits.
const maxChain = 1<<32 - 1

// add appends the buffer of d, checked: inside guest memory, not inside the rings, writable ones last.
func (q *Queue) add(c *Chain, d descriptor) bool {
	write := d.flags&flagWrite != 0
	if !write && len(c.Writable) > 0 {
		return false
	}
	if d.len == 0 {
		return true // nothing to read or write
	}
	if len(c.Readable)+len(c.Writable) >= int(q.state.Size) {
		return false // direct and indirect parts together
	}
	b, err := q.mem.Slice(d.addr, uint64(d.len))
	if err != nil {
		return false
	}
	for _, ring := range q.rings {
		if ring.overlaps(d.addr, uint64(d.len)) {
			return false
		}
	}
	if write {
		c.Writable = append(c.Writable, b)
		c.places = append(c.places, span{d.addr, d.addr + guestmem.GPA(d.len)})
		c.writable += uint64(d.len)
	} else {
		c.Readable = append(c.Readable, b)
		c.readable += uint64(d.len)
	}
	return c.readable+c.writable <= min(maxChain, q.mem.Size())
}
