package resolver

import (
	"container/list"
	"sync"
	"time"
)

// maxCached bounds the answers that are kept. What a guest asks for decides which; it can only lose its own.
const maxCached = 1024

// cache keeps outcomes until they are over, those that were asked for last if there are too many. The zero value is empty.
type cache struct {
	mu      sync.Mutex
	entries map[question]*list.Element // of *entry
	recent  list.List                  // the latest first
}

type entry struct {
	key question
	o   outcome
	at  time.Time
}

// get returns what is kept for key and how many seconds ago it came.
func (c *cache) get(key question, now time.Time) (o outcome, age uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element := c.entries[key]
	if element == nil {
		return outcome{}, 0, false
	}
	e := element.Value.(*entry)
	since := now.Sub(e.at)
	if since < 0 || since >= time.Duration(e.o.ttl)*time.Second {
		c.remove(element)
		return outcome{}, 0, false
	}
	c.recent.MoveToFront(element)
	return e.o, uint32(since / time.Second), true
}

func (c *cache) put(key question, o outcome, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[question]*list.Element{}
	}
	if old := c.entries[key]; old != nil {
		c.remove(old)
	}
	if c.recent.Len() >= maxCached {
		c.remove(c.recent.Back())
	}
	c.entries[key] = c.recent.PushFront(&entry{key, o, now})
}

func (c *cache) remove(element *list.Element) {
	delete(c.entries, element.Value.(*entry).key)
	c.recent.Remove(element)
}

func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = nil
	c.recent.Init()
}
