package balloon

import (
	"encoding/binary"
	"slices"

	"spore/guestmem"
	"spore/virtio/queue"
)

// maxPFNs bounds the page frame numbers taken from one chain; Linux sends 256. The rest of a longer chain is ignored,
// which the device may do: pages of the balloon are the guest's loss only.
const maxPFNs = 1024

// span is a range of guest memory.
type span struct{ from, to uint64 }

// pages is the scratch space of one queue: page frame numbers copied out of one chain.
type pages struct {
	raw  [4 * maxPFNs]byte
	pfns [maxPFNs]uint32
}

// parse copies the page frame numbers out of a chain, once, sorts them and drops repeats. Odd bytes at the end are
// ignored. rest is true when the chain held more than maxPFNs.
func (p *pages) parse(readable [][]byte) (pfns []uint32, rest bool) {
	n := gather(p.raw[:], readable)
	pfns = p.pfns[:n/4]
	for i := range pfns {
		pfns[i] = binary.LittleEndian.Uint32(p.raw[4*i:])
	}
	total := uint64(0)
	for _, b := range readable {
		total += uint64(len(b))
	}
	slices.Sort(pfns)
	return slices.Compact(pfns), total >= uint64(len(p.raw))+4
}

// run returns the range of the consecutive numbers at the front of sorted pfns, and how many they are.
func run(pfns []uint32) (s span, n int) {
	n = 1
	for n < len(pfns) && pfns[n] == pfns[n-1]+1 {
		n++
	}
	from := uint64(pfns[0]) << pageBits
	return span{from, from + uint64(n)<<pageBits}, n
}

// rings are the pages that hold the device's own queues. A guest that gives those away would only break its own
// device; they are left alone all the same, so that a mistake of the guest stays visible as what it is.
func rings(queues []*queue.Queue) (own []span) {
	for _, q := range queues {
		if q == nil {
			continue
		}
		s := q.State()
		size := uint64(s.Size)
		// virtio 1.2 §2.7: lengths of the three areas.
		for _, area := range [3]struct {
			at guestmem.GPA
			n  uint64
		}{{s.Desc, 16 * size}, {s.Avail, 6 + 2*size}, {s.Used, 6 + 8*size}} {
			from := uint64(area.at) &^ (PageSize - 1)
			to := (uint64(area.at) + area.n + PageSize - 1) &^ (PageSize - 1)
			own = append(own, span{from, to})
		}
	}
	return own
}

// overlaps says whether any of own has a byte of s.
func overlaps(own []span, s span) bool {
	return slices.ContainsFunc(own, func(o span) bool { return s.from < o.to && o.from < s.to })
}
