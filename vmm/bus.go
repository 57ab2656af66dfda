package vmm

import (
	"fmt"
	"sort"
	"sync/atomic"
)

// register is a device's register window. Offsets are relative to its base. A Read must fill all of p or leave
// it zero; neither call may block for long or fail: what the guest does wrong is answered with zeros.
type register interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

type window struct {
	base, size uint64
	regs       register
}

// bus routes accesses to one address space, memory or ports. It is immutable once the vCPUs run.
type bus struct {
	name      string
	windows   []window      // by base, without overlap
	fill      byte          // what a read of nobody's address gives
	unclaimed atomic.Uint64 // accesses to nobody's address
}

// add claims size addresses from base on.
func (b *bus) add(base, size uint64, r register) error {
	i := sort.Search(len(b.windows), func(i int) bool { return b.windows[i].base >= base })
	if i < len(b.windows) && base+size > b.windows[i].base ||
		i > 0 && b.windows[i-1].base+b.windows[i-1].size > base {
		return fmt.Errorf("claim %s %#x+%#x: taken", b.name, base, size)
	}
	b.windows = append(b.windows[:i], append([]window{{base, size, r}}, b.windows[i:]...)...)
	return nil
}

// find returns the window that contains all of [addr, addr+n), or nil.
func (b *bus) find(addr uint64, n int) *window {
	lo, hi := 0, len(b.windows)
	for lo < hi {
		mid := (lo + hi) / 2
		if b.windows[mid].base <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return nil
	}
	w := &b.windows[lo-1]
	if off := addr - w.base; off < w.size && uint64(n) <= w.size-off {
		return w
	}
	return nil
}

// read fills p, which is zero, from addr. Nobody's address gives fill bytes every time.
func (b *bus) read(addr uint64, p []byte) {
	if w := b.find(addr, len(p)); w != nil {
		w.regs.Read(addr-w.base, p)
		return
	}
	b.unclaimed.Add(1)
	for i := range p {
		p[i] = b.fill
	}
}

// write sends p to addr. Nobody's address swallows it.
func (b *bus) write(addr uint64, p []byte) {
	if w := b.find(addr, len(p)); w != nil {
		w.regs.Write(addr-w.base, p)
		return
	}
	b.unclaimed.Add(1)
}
