package network

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeAttacher counts what it makes.
type fakeAttacher struct {
	mu                     sync.Mutex
	made, bound, discarded int
	prepareErr, bindErr    error
	standing               map[*Attachment]bool
}

func (f *fakeAttacher) Prepare(_ context.Context, c Class) (*Attachment, error) {
	time.Sleep(50 * time.Millisecond) // of the bubble's time
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prepareErr != nil {
		return nil, f.prepareErr
	}
	f.made++
	a := &Attachment{ID: fmt.Sprintf("%012x", f.made), Choice: c.Choice}
	f.standing[a] = true
	return a, nil
}

func (f *fakeAttacher) Bind(a *Attachment, sandbox string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bindErr != nil {
		return f.bindErr
	}
	if !f.standing[a] {
		return errors.New("bound twice, or after it was discarded")
	}
	delete(f.standing, a)
	a.Sandbox = sandbox
	f.bound++
	return nil
}

func (f *fakeAttacher) Discard(_ context.Context, a *Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.standing[a] {
		return errors.New("discarded twice, or a sandbox's")
	}
	delete(f.standing, a)
	f.discarded++
	return nil
}

func (f *fakeAttacher) counts() (made, bound, discarded, standing int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made, f.bound, f.discarded, len(f.standing)
}

// pooled runs do with a pool that is served, in a bubble, and sees that nothing stands when it has ended.
func pooled(t *testing.T, cfg PoolConfig, do func(p *Pool, f *fakeAttacher)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAttacher{standing: map[*Attachment]bool{}}
		p := NewPool(f, cfg)
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- p.Serve(ctx) }()
		do(p, f)
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, _, _, standing := f.counts(); standing != 0 {
			t.Errorf("%d left standing", standing)
		}
		if a, err := p.Take(Request{Sandbox: "000000000001", Choice: Choice{Kind: KindNAT}}); a != nil || err != nil {
			t.Errorf("a closed pool gives %v, %v", a, err)
		}
	})
}

func natRequest(n int) Request {
	return Request{Sandbox: fmt.Sprintf("%012x", n), Choice: Choice{Kind: KindNAT}}
}

func TestPoolGivesEachOnceAndRefills(t *testing.T) {
	pooled(t, PoolConfig{Depth: 3, Max: 8}, func(p *Pool, f *fakeAttacher) {
		if a, err := p.Take(natRequest(1)); a != nil || err != nil {
			t.Fatalf("an empty pool gives %v, %v", a, err)
		}
		time.Sleep(time.Second)
		seen := map[string]bool{}
		for i := range 3 {
			a, err := p.Take(natRequest(2 + i))
			if err != nil || a == nil || seen[a.ID] || a.Sandbox != fmt.Sprintf("%012x", 2+i) {
				t.Fatalf("take %d: %+v, %v", i, a, err)
			}
			seen[a.ID] = true
		}
		if a, _ := p.Take(natRequest(9)); a != nil {
			t.Errorf("a fourth of three: %+v", a)
		}
		time.Sleep(time.Second)
		if got, want := fmt.Sprint(p.Stats()), "[{{nat true 0} 3 3 2}]"; got != want {
			t.Errorf("stats %s, want %s", got, want)
		}
	})
}

// TestPoolRests takes one: another is made only when its taker has had the processors, however many are taken meanwhile.
func TestPoolRests(t *testing.T) {
	const rest = time.Minute
	pooled(t, PoolConfig{Depth: 2, Max: 2, Rest: rest}, func(p *Pool, f *fakeAttacher) {
		if err := p.Keep(context.Background(), natRequest(0).Class()); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if a, err := p.Take(natRequest(1 + i)); err != nil || a == nil {
				t.Fatalf("take %d: %+v, %v", i, a, err)
			}
			time.Sleep(rest / 3)
		}
		if made, _, _, _ := f.counts(); made != 2 {
			t.Errorf("%d were made while it rests, not 2", made)
		}
		time.Sleep(rest)
		if made, _, _, standing := f.counts(); made != 4 || standing != 2 {
			t.Errorf("%d were made and %d stand after it, not 4 and 2", made, standing)
		}
	})
}

func TestPoolKeepsToItsBounds(t *testing.T) {
	pooled(t, PoolConfig{Depth: 3, Max: 4, Idle: time.Minute}, func(p *Pool, f *fakeAttacher) {
		for i := range 4 {
			c := Class{Choice: Choice{KindInternal, fmt.Sprint("s", i)}}
			if err := p.Keep(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			if _, _, _, standing := f.counts(); standing > 4 {
				t.Errorf("%d stand, more than 4", standing)
			}
			time.Sleep(time.Second)
		}
		if got, want := p.Stats()[3].Ready, 3; got != want {
			t.Errorf("the class wanted last has %d, want %d", got, want)
		}
		time.Sleep(2 * time.Minute)
		if _, _, _, standing := f.counts(); standing != 0 || len(p.Stats()) != 0 {
			t.Errorf("%d stand after nobody wanted any: %v", standing, p.Stats())
		}
	})
}

func TestPoolSurvivesFailures(t *testing.T) {
	pooled(t, PoolConfig{Depth: 1, Max: 1}, func(p *Pool, f *fakeAttacher) {
		f.prepareErr = errors.New("no")
		if err := p.Keep(context.Background(), natRequest(0).Class()); err == nil {
			t.Error("kept what cannot be made")
		}
		p.Take(natRequest(1))
		time.Sleep(time.Second)
		f.mu.Lock()
		f.prepareErr, f.bindErr = nil, errors.New("no")
		f.mu.Unlock()
		p.Take(natRequest(2))
		time.Sleep(time.Second)
		if _, err := p.Take(natRequest(3)); err == nil {
			t.Error("took what cannot be bound")
		}
		time.Sleep(time.Second)
		f.mu.Lock()
		f.bindErr = nil
		f.mu.Unlock()
		if a, err := p.Take(natRequest(4)); a == nil || err != nil {
			t.Errorf("take: %v, %v", a, err)
		}
		if _, _, discarded, _ := f.counts(); discarded != 1 {
			t.Errorf("%d discarded, want 1", discarded)
		}
	})
}
