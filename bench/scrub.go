package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// scrubbed is how much free memory is overwritten before a guest starts, in bytes: more than a guest and its VMM take.
const scrubbed = 512 << 20

// scrub overwrites free memory before a guest of either kind starts, so that none pays for what the one before it left there: an
// emulated processor keeps its translation of code for a page until the page is written, and then each of these writes is slow. A
// guest that gets the pages of another's kernel would take up to 0.4 s to clear and fill them. A real processor has no such
// pages, and there it changes nothing.
func scrub() error {
	runtime.GC() // none of ours falls into the start of one
	b, err := unix.Mmap(-1, 0, scrubbed, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("overwrite free memory: %w", err)
	}
	return unix.Munmap(b)
}
