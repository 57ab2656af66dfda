package console_test

import (
	"encoding/json"
	"errors"
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

// TestQ16 lets the writer fail in every way: the guest is served all the same, and what was lost is counted.
func TestQ16(t *testing.T) {
	for name, w := range map[string]io.Writer{
		"error":             failing{0, errors.New("gone")},
		"part":              failing{2, io.ErrShortWrite},
		"more than it got":  failing{1 << 30, nil},
		"less than nothing": failing{-1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := virtiotest.NewDriver(t, console.New(console.Config{Output: w}))
			d.Negotiate(virtiotest.All)
			for range 3 {
				d.Submit(1, virtiotest.Buffer{Data: []byte("hello")})
				d.WaitUsed(1, 1)
			}
			c := d.Bus.Counters()
			if c["transmitted_bytes"]+c["dropped_bytes"] != 15 {
				t.Errorf("of 15 bytes, %d came through and %d were dropped", c["transmitted_bytes"], c["dropped_bytes"])
			}
		})
	}
}

type failing struct {
	n   int
	err error
}

func (f failing) Write([]byte) (int, error) { return f.n, f.err }

// TestPanicIsContained makes the writer panic in the device's own goroutine.
func TestPanicIsContained(t *testing.T) {
	d := virtiotest.NewDriver(t, console.New(console.Config{Output: panicking{}}))
	d.Negotiate(virtiotest.All)
	d.Submit(1, virtiotest.Buffer{Data: []byte("hello")})
	d.Await("request for a reset", d.NeedsReset)
	if n := d.Bus.Counters()["transport_panics"]; n != 1 {
		t.Errorf("%d panics counted", n)
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("bug: in a writer") }

// TestInputOutlivesAPause types while nobody reads, pauses, and carries what was under way into another device.
func TestInputOutlivesAPause(t *testing.T) {
	pr, pw := io.Pipe()
	dev := console.New(console.Config{Input: pr})
	d := virtiotest.NewDriver(t, dev)
	d.Negotiate(virtiotest.All)
	d.Submit(0, virtiotest.Buffer{Len: 1})
	pw.Write([]byte("typed")) // returns when the device's reader has it
	d.WaitUsed(0, 1)
	d.Pause()
	saved, err := dev.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	other := console.New(console.Config{Input: strings.NewReader("")})
	if err := other.LoadState(saved); err != nil {
		t.Fatal(err)
	}
	twin := virtiotest.NewDriver(t, other)
	twin.Negotiate(virtiotest.All)
	_, at := twin.Submit(0, virtiotest.Buffer{Len: 16})
	if u := twin.WaitUsed(0, 1); string(twin.Bytes(at[0], int(u[0].Len))) != "yped" {
		t.Errorf("got %d bytes", u[0].Len)
	}
	pw.Close()
}

func TestLoadStateRefuses(t *testing.T) {
	big, err := json.Marshal(map[string][]byte{"pending": make([]byte, 4<<10+1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"", "[", `{"pending":1}`, `{"pending":"?"}`, string(big)} {
		if err := console.New(console.Config{}).LoadState([]byte(s)); err == nil {
			t.Errorf("accepted %.20q", s)
		}
	}
}
