package policy

import (
	"net/netip"
	"time"
)

// Names is which addresses stand for which names at the moment: what the resolver has told the guest, for as long as the
// guest may rely on it. It is bounded, and safe for use by several goroutines.
type Names struct {
}

// NewNames returns an empty table. clock is time.Now but for tests.
func NewNames(clock func() time.Time) *Names { return &Names{} }

// Learn notes that the guest was told that name stands for addr, for ttl. name is the one asked for, never that of an
// alias on the way.
func (n *Names) Learn(name string, addr netip.Addr, ttl time.Duration) {}

// Of returns the names that stand for addr, in order. A nil table has none.
func (n *Names) Of(addr netip.Addr) []string { return nil }

// Addresses returns what name stands for, in order. A nil table has none.
func (n *Names) Addresses(name string) []netip.Addr { return nil }
