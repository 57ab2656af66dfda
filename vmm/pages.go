package vmm

import "math/bits"

// pageSet is a set of the pages of a region: a bit for each, as in KVM's dirty log.
type pageSet []uint64

func (s pageSet) add(page int)    { s[page/64] |= 1 << (page % 64) }
func (s pageSet) remove(page int) { s[page/64] &^= 1 << (page % 64) }

// has reports whether page is in the set. What is beyond its end is not.
func (s pageSet) has(page int) bool { return page/64 < len(s) && s[page/64]&(1<<(page%64)) != 0 }

// next is the first page from page on that is in the set, or, for a want of false, that is not; the end if there is none.
func (s pageSet) next(page int, want bool) int {
	for page < 64*len(s) {
		word := s[page/64]
		if !want {
			word = ^word
		}
		if word >>= page % 64; word != 0 {
			return page + bits.TrailingZeros64(word)
		}
		page = page/64*64 + 64
	}
	return 64 * len(s)
}

// run is the first run of pages from page on, at most limit long. A count of 0 says that there is none.
func (s pageSet) run(page, limit int) (first, count int) {
	first = s.next(page, true)
	return first, min(s.next(first, false)-first, limit)
}
