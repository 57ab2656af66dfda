package console_test

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"spore/virtio"
	"spore/virtio/console"
	"spore/virtio/virtiotest"
)

// screen keeps what it is written.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func TestSuite(t *testing.T) {
	out := &screen{}
	virtiotest.Suite(t, virtiotest.Case{
		New: func(*testing.T) virtio.Device {
			return console.New(console.Config{Output: out, Input: strings.NewReader(""), Columns: 80, Rows: 25})
		},
		Use: func(t *testing.T, d *virtiotest.Driver) {
			t.Helper()
			before := strings.Count(out.String(), "hello")
			d.Submit(1, virtiotest.Buffer{Data: []byte("hel")}, virtiotest.Buffer{Data: []byte("lo\n")})
			d.WaitUsed(1, 1)
			if got := strings.Count(out.String(), "hello"); got != before+1 {
				t.Errorf("hello came %d times, want %d", got, before+1)
			}
		},
		Eager: []int{1},
	})
}

// TestCON01 floods the console: the rate bounds what reaches the host, and the guest is not held up.
func TestCON01(t *testing.T) {
	out := &screen{}
	now := time.Unix(0, 0)
	d := virtiotest.NewDriver(t, console.New(console.Config{Output: out, Now: func() time.Time { return now }}))
	d.Negotiate(virtiotest.All)
	flood := []byte(strings.Repeat("x", 16<<10))
	for range 200 {
		d.Submit(1, virtiotest.Buffer{Data: flood})
		d.WaitUsed(1, 1)
	}
	if n := len(out.String()); n > 256<<10 {
		t.Errorf("CON-01: %d bytes came through at once", n)
	}
	if d.Bus.Counters()["dropped_bytes"] == 0 {
		t.Error("CON-01: dropped bytes are not counted")
	}
}

func TestInput(t *testing.T) {
	pr, pw := io.Pipe()
	d := virtiotest.NewDriver(t, console.New(console.Config{Input: pr}))
	d.Negotiate(virtiotest.All)
	go pw.Write([]byte("typed"))
	_, at := d.Submit(0, virtiotest.Buffer{Len: 3})
	if u := d.WaitUsed(0, 1); u[0].Len != 3 || string(d.Bytes(at[0], 3)) != "typ" {
		t.Errorf("got %d bytes %q", u[0].Len, d.Bytes(at[0], 3))
	}
	_, at = d.Submit(0, virtiotest.Buffer{Len: 16})
	if u := d.WaitUsed(0, 1); u[0].Len != 2 || string(d.Bytes(at[0], 2)) != "ed" {
		t.Errorf("got %d bytes %q", u[0].Len, d.Bytes(at[0], 2))
	}
	pw.Close()
}
