package main

import (
	"runtime"
	"sync"
)

// processors gives the runtime one more for each goroutine that waits for a file, and one to spare. While one is in a system call it keeps its
// processor until the monitor hands that on, which looks too seldom for that here (internal/sysmon): with two, sixteen that wait 0.1 ms each
// were a quarter as fast. Each is 20 KiB and five page faults, and a thread at the start, so they come when they are needed; they stay.
type processors struct {
	mu      sync.Mutex
	base    int // the runtime's at the start
	extra   int
	waiting int
}

func newProcessors() *processors { return &processors{base: runtime.GOMAXPROCS(0)} }

// change takes note of goroutines that begin or end to wait. To add a processor stops the program for a moment, so their number is doubled each time.
func (p *processors) change(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting += n
	if p.waiting >= p.extra && p.waiting > 0 {
		p.extra = max(p.waiting+1, 2*p.extra)
		runtime.GOMAXPROCS(p.base + p.extra)
	}
}
