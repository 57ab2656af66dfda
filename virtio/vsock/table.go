package vsock

import "sync"

// Host ports of connections that the host opened: the first half of what is left above the ports people choose.
const (
	firstHostPort Port = 0x4000_0000
	lastHostPort  Port = 0x7fff_ffff
)

// key names a connection: both ends' addresses are fixed, so the ports are enough.
type key struct{ guest, host Port }

// table holds the connections. It never holds more than max, whatever either side does.
type table struct {
	max int

	mu       sync.Mutex
	byKey    map[key]*conn    // those the guest can still name
	byID     map[uint32]*conn // those that the supervisor was asked about
	all      []*conn          // oldest first: byKey, and those that drain
	nextPort Port
	nextID   uint32
}

func newTable(max int) *table {
	return &table{max: max, byKey: map[key]*conn{}, byID: map[uint32]*conn{}, nextPort: firstHostPort}
}

// find is the connection that a packet of the guest's names, or nil.
func (t *table) find(k key) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[k]
}

// full reports whether there is no room, and the oldest connection that is over but not forgotten, if there is one.
func (t *table) full() (bool, *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) < t.max {
		return false, nil
	}
	for _, c := range t.all {
		if c.over() {
			return true, c
		}
	}
	return true, nil
}

// addDialled adds c under a host port that is free. It reports false where there is no room.
func (t *table) addDialled(c *conn, guest Port) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= t.max {
		return false
	}
	// At most max ports are taken, so this ends within max+1 rounds.
	for {
		c.key = key{guest: guest, host: t.nextPort}
		if t.nextPort++; t.nextPort > lastHostPort {
			t.nextPort = firstHostPort
		}
		if t.byKey[c.key] == nil {
			break
		}
	}
	t.byKey[c.key] = c
	t.all = append(t.all, c)
	return true
}

// addAsked adds c, which the guest asked for under a name that is free, and gives it an id for the supervisor.
func (t *table) addAsked(c *conn, k key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= t.max || t.byKey[k] != nil {
		return false
	}
	for t.nextID++; t.byID[t.nextID] != nil; t.nextID++ {
	}
	c.key, c.id = k, t.nextID
	t.byKey[k], t.byID[c.id] = c, c
	t.all = append(t.all, c)
	return true
}

// answer is the connection that the supervisor's answer id is for, or nil. An id is good for one answer.
func (t *table) answer(id uint32) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.byID[id]
	delete(t.byID, id)
	return c
}

// release takes c's name away, and c itself unless it is still draining.
func (t *table) release(c *conn, draining bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[c.key] == c {
		delete(t.byKey, c.key)
	}
	if t.byID[c.id] == c {
		delete(t.byID, c.id)
	}
	if draining {
		return
	}
	for i, o := range t.all {
		if o == c {
			t.all = append(t.all[:i], t.all[i+1:]...)
			break
		}
	}
}

// list is a copy of all connections, oldest first.
func (t *table) list() []*conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*conn(nil), t.all...)
}

// size is the number of connections, those included that are over.
func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// port is where the next host port is looked for.
func (t *table) port() Port {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.nextPort
}

// setPort sets it; a port outside the range is not taken.
func (t *table) setPort(p Port) bool {
	if p < firstHostPort || p > lastHostPort {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextPort = p
	return true
}
