package sandbox

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
)

// TestStopPool returns when the pool has given everything back, its lock last, and then there is none to stop.
func TestStopPool(t *testing.T) {
	dir := t.TempDir()
	p := NewPool(dir, Host{Log: slog.New(slog.DiscardHandler)}, PoolConfig{Depth: 1, Max: 1, Idle: time.Hour})
	ready, over := make(chan struct{}), make(chan error, 1)
	go func() { over <- p.Serve(t.Context(), func() { close(ready) }) }()
	<-ready
	if err := StopPool(dir); err != nil {
		t.Fatal(err)
	}
	lock, err := flock.Open(filepath.Join(dir, poolLock), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		t.Errorf("its lock is held: %v", err)
	} else {
		lock.Close()
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := StopPool(dir); !errors.Is(err, ErrNoPool) {
		t.Errorf("a second time: %v", err)
	}
}
