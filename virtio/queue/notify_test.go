package queue_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio/queue"
)

// limit ends a test that has lost a wake-up. It only has to end.
const limit = 2 * time.Minute

func newKick(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "kick")
	t.Cleanup(func() { f.Close() })
	return f
}

func kick(t testing.TB, f *os.File) {
	t.Helper()
	if _, err := f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Error(err)
	}
}

// TestWaitEventfd ends waits by kicks and by contexts, again and again: an interrupted wait leaves the file fit for
// the next, and a kick that comes at the same time is seen by the queue that takes over.
func TestWaitEventfd(t *testing.T) {
	m, f := newMemory(t), newKick(t)
	for range 200 {
		q, err := queue.New(m, state(4), queue.Features{}, f)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if err := q.Wait(ctx); err != nil {
			t.Fatalf("the first wait: %v", err)
		}
		go kick(t, f)
		if err := q.Wait(ctx); err != nil {
			t.Fatalf("wait for a kick: %v", err)
		}
		go cancel()
		if err := q.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("wait for the end: %v", err)
		}
		if err := q.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("wait after the end: %v", err)
		}
	}
}

// TestNewRefusesKick gives a file that no wait could be interrupted on.
func TestNewRefusesKick(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "kick"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := queue.New(newMemory(t), state(4), queue.Features{}, f); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("made a queue: %v", err)
	}
}

// TestQ12 moves many requests between a driver and a device that both suppress all the notifications they can.
// A single one lost, or a store and a load in the wrong order, and the two wait for each other.
func TestQ12(t *testing.T) {
	for name, f := range map[string]queue.Features{"event index": {EventIdx: true}, "flags": {}} {
		t.Run(name, func(t *testing.T) {
			const size, requests = 8, 20_000
			m := newMemory(t)
			for i := range uint16(size) {
				put(t, m, i, buffers, 16, 2, 0)
			}
			file := newKick(t)
			q, err := queue.New(m, state(size), f, file)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			interrupt, stopped := make(chan struct{}, 1), make(chan struct{})
			go func() {
				defer close(stopped)
				serve(ctx, t, q, interrupt)
			}()
			g := guest{t: t, mem: m, size: size, eventIdx: f.EventIdx, kick: file, interrupt: interrupt}
			for g.avail = 0; g.avail < requests; {
				g.submit(1 + g.avail%size)
				g.wait(ctx)
			}
			t.Logf("%d requests, %d kicks, %d interrupts", requests, g.kicks, g.interrupts)
			cancel()
			<-stopped
		})
	}
}

// serve is a device that gives every chain back.
func serve(ctx context.Context, t *testing.T, q *queue.Queue, interrupt chan<- struct{}) {
	for q.Wait(ctx) == nil {
		for more := true; more; more = q.EnableKicks() {
			q.DisableKicks()
			for {
				c, err := q.Pop()
				if err != nil {
					t.Error(err)
					return
				}
				if c == nil {
					break
				}
				if err := q.Push(c.Head, 0); err != nil {
					t.Error(err)
					return
				}
				if q.NeedsInterrupt() {
					select {
					case interrupt <- struct{}{}:
					default:
					}
				}
			}
		}
	}
}

// guest is the driver's side, as virtio 1.2 §2.7.13 and §2.7.14 tell it.
type guest struct {
	t           *testing.T
	mem         *guestmem.Memory
	size        uint16
	eventIdx    bool
	kick        *os.File
	interrupt   <-chan struct{}
	avail, used uint16

	kicks, interrupts int
}

func (g *guest) load(a guestmem.GPA) uint16 {
	v, err := g.mem.LoadUint16(a)
	if err != nil {
		g.t.Fatal(err)
	}
	return v
}

// submit makes n descriptors available and kicks if the device wants it.
func (g *guest) submit(n uint16) {
	old := g.avail
	for range n {
		publish(g.t, g.mem, g.size, g.avail, g.avail%g.size)
		g.avail++
	}
	wanted := g.load(usedRing)&1 == 0
	if g.eventIdx {
		event := g.load(usedRing + 4 + 8*guestmem.GPA(g.size))
		wanted = g.avail-event-1 < g.avail-old
	}
	if wanted {
		g.kicks++
		kick(g.t, g.kick)
	}
}

// wait takes what was used until nothing is outstanding, asking for as few interrupts as there can be.
func (g *guest) wait(ctx context.Context) {
	for {
		g.used = g.load(usedRing + 2)
		if g.used == g.avail {
			g.mem.StoreUint16(availRing, 1) // no interrupts please; nothing with an event index
			return
		}
		g.mem.StoreUint16(availRing, 0)
		g.mem.StoreUint16(availRing+4+2*guestmem.GPA(g.size), g.avail-1) // when the last is used
		if g.load(usedRing+2) != g.used {
			continue
		}
		select {
		case <-g.interrupt:
			g.interrupts++
		case <-ctx.Done():
			g.t.Fatalf("a notification was lost: available %d, used %d", g.avail, g.used)
		}
	}
}
