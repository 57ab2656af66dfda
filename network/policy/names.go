package policy

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The bounds of Names. A guest that is told more loses what it was told first; it can only harm itself.
const (
	// MinLife and MaxLife bound how long an address stands for a name, whatever time to live the answer had; Grace is added for
	// programs that keep answers a little longer than they may, and for connections that are slow to be made.
	MinLife = time.Minute
	MaxLife = 5 * time.Minute
	Grace   = time.Minute

	maxPairs      = 8192
	maxPerName    = 64 // addresses
	maxPerAddress = 64 // names: addresses of large hosters have many
)

// Names is which addresses stand for which names at the moment: what the resolver has told the guest, for as long as the
// guest may rely on it. It is bounded, and safe for use by several goroutines. A nil Names knows nothing.
type Names struct {
	clock func() time.Time

	mu     sync.RWMutex
	byAddr map[netip.Addr][]*pair // each in the order in which they were learnt
	byName map[string][]*pair
	order  list.List // of *pair, in the order in which they were learnt
}

// pair is a name at an address until a time.
type pair struct {
	name    string
	addr    netip.Addr
	until   time.Time
	element *list.Element
}

// NewNames returns an empty table. clock is time.Now but for tests.
func NewNames(clock func() time.Time) *Names {
	return &Names{clock: clock, byAddr: map[netip.Addr][]*pair{}, byName: map[string][]*pair{}}
}

// Learn notes that the guest was told that name stands for addr, for ttl. name is the one asked for, never that of an
// alias on the way. What is no name or no address is not noted.
func (n *Names) Learn(name string, addr netip.Addr, ttl time.Duration) {
	name, err := CanonicalName(name)
	if err != nil || !addr.IsValid() {
		return
	}
	now := n.clock()
	p := &pair{name: name, addr: addr.Unmap().WithZone(""), until: now.Add(min(max(ttl, MinLife), MaxLife) + Grace)}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, old := range n.byName[name] {
		if old.addr == p.addr {
			p.until = later(p.until, old.until)
			n.remove(old)
			break
		}
	}
	// Lives differ by minutes, so that what is over is near the front; what is not gets there.
	for first := n.order.Front(); first != nil && !first.Value.(*pair).until.After(now); first = n.order.Front() {
		n.remove(first.Value.(*pair))
	}
	if old := n.byName[name]; len(old) >= maxPerName {
		n.remove(old[0])
	}
	if old := n.byAddr[p.addr]; len(old) >= maxPerAddress {
		n.remove(old[0])
	}
	if n.order.Len() >= maxPairs {
		n.remove(n.order.Front().Value.(*pair))
	}
	n.byName[name] = append(n.byName[name], p)
	n.byAddr[p.addr] = append(n.byAddr[p.addr], p)
	p.element = n.order.PushBack(p)
}

// later is the later of two times: an answer with a short life does not take back what an earlier one promised.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (n *Names) remove(p *pair) {
	n.order.Remove(p.element)
	take(n.byName, p.name, p)
	take(n.byAddr, p.addr, p)
}

// take removes p from the list under key.
func take[K comparable](m map[K][]*pair, key K, p *pair) {
	left := slices.DeleteFunc(m[key], func(q *pair) bool { return q == p })
	if len(left) == 0 {
		delete(m, key)
		return
	}
	m[key] = left
}

// Len is how many pairs of a name and an address are kept.
func (n *Names) Len() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.order.Len()
}

// Of returns the names that stand for addr, in alphabetical order.
func (n *Names) Of(addr netip.Addr) []string {
	names := n.appendOf(nil, addr.Unmap().WithZone(""))
	slices.Sort(names)
	return names
}

// appendOf appends the names that stand for addr, which is unmapped.
func (n *Names) appendOf(to []string, addr netip.Addr) []string {
	if n == nil {
		return to
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	pairs := n.byAddr[addr]
	if len(pairs) == 0 {
		return to
	}
	now := n.clock()
	for _, p := range pairs {
		if p.until.After(now) {
			to = append(to, p.name)
		}
	}
	return to
}

// Addresses returns what name stands for, in order.
func (n *Names) Addresses(name string) []netip.Addr {
	name, err := CanonicalName(name)
	if n == nil || err != nil {
		return nil
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	now := n.clock()
	var addrs []netip.Addr
	for _, p := range n.byName[name] {
		if p.until.After(now) {
			addrs = append(addrs, p.addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// stands reports whether name, which is canonical, stands for addr, which is unmapped.
func (n *Names) stands(name string, addr netip.Addr) bool {
	if n == nil {
		return false
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	now := n.clock()
	for _, p := range n.byName[name] {
		if p.addr == addr && p.until.After(now) {
			return true
		}
	}
	return false
}

// Forget drops everything: the guest is another one from now on.
func (n *Names) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byAddr, n.byName = map[netip.Addr][]*pair{}, map[string][]*pair{}
	n.order.Init()
}
