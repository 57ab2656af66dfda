package vsock

// buffer holds bytes of the guest's that the host's socket did not take at once: a ring that grows by doubling up to
// limit. Whoever appends has checked the credit: it never holds more than limit.
type buffer struct {
	limit  int
	ring   []byte
	start  int // index of the oldest byte
	n      int // bytes held
	unused int // times in a row that it was not needed
}

const (
	minBuffer = 4 << 10
	// maxUnused is how often a ring may be not needed before its memory is given back.
	maxUnused = 64
)

// skip notes that bytes went past the buffer, which is empty.
func (b *buffer) skip() {
	if b.unused++; b.unused > maxUnused {
		b.ring, b.start, b.unused = nil, 0, 0
	}
}

// len is the number of bytes held.
func (b *buffer) len() int { return b.n }

// append adds the bytes of pieces.
func (b *buffer) append(pieces [][]byte) {
	b.unused = 0
	total := int(lengthOf(pieces))
	if total > b.limit-b.n {
		panic("bug: buffered beyond the credit given")
	}
	if b.n+total > len(b.ring) {
		b.grow(b.n + total)
	}
	for _, p := range pieces {
		for len(p) > 0 {
			end := b.start + b.n
			if end >= len(b.ring) {
				end -= len(b.ring)
			}
			k := copy(b.ring[end:min(len(b.ring), end+len(b.ring)-b.n)], p)
			b.n += k
			p = p[k:]
		}
	}
}

// grow makes room for n bytes altogether.
func (b *buffer) grow(n int) {
	size := max(len(b.ring), minBuffer)
	for size < n {
		size *= 2
	}
	ring := make([]byte, min(size, b.limit))
	k := 0
	for _, p := range b.view(nil) {
		k += copy(ring[k:], p)
	}
	b.ring, b.start = ring, 0
}

// view appends the bytes held, oldest first, to pieces, as at most two. They are valid until the next change.
func (b *buffer) view(pieces [][]byte) [][]byte {
	if b.n == 0 {
		return pieces
	}
	first := min(b.n, len(b.ring)-b.start)
	pieces = append(pieces, b.ring[b.start:b.start+first])
	if first < b.n {
		pieces = append(pieces, b.ring[:b.n-first])
	}
	return pieces
}

// discard drops the n oldest bytes.
func (b *buffer) discard(n int) {
	b.n -= n
	b.start = (b.start + n) % len(b.ring)
	if b.n == 0 {
		b.start = 0 // in one piece for longer
	}
}
