package console_test

import (
	"strings"
	"testing"
	"time"

	"spore/virtio/console"
	"spore/virtio/virtiotest"
)

// FuzzConsole sends chains of any kind and offers others for input: both come back, output is what the readable
// buffers hold and is bounded, and no byte is written outside writable buffers.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x05\x00\x00\x00"), []byte("\x00\x02\x00\x00\x05\x00\x00\x00"), []byte("hello"))
	f.Add([]byte("\x00\x01\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00"), []byte("\x02\x02\x00\x00\x00\x00\x00\x00"), []byte("hello"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x80\x00\x00"), []byte("\x06\x02\x00\x00\x05\x00\x00\x00"), []byte("x"))
	fuzzer := virtiotest.NewFuzzer(f)
	f.Fuzz(func(t *testing.T, transmit, receive, content []byte) {
		out := &screen{}
		d := fuzzer.Driver(t, console.New(console.Config{
			Output: out, Input: strings.NewReader("typed"), Now: func() time.Time { return time.Unix(0, 0) },
		}))
		for _, u := range d.Fuzz(1, transmit, content) {
			if u.Len != 0 {
				t.Errorf("%d bytes written into output", u.Len)
			}
		}
		if n := len(out.String()); n > 16<<10 {
			t.Errorf("CON-01: %d bytes of one request", n)
		}
		for _, u := range d.Fuzz(0, receive, nil) {
			if u.Len > uint32(len("typed")) {
				t.Errorf("%d bytes of input, from 5", u.Len)
			}
		}
		if d.NeedsReset() {
			t.Error("the device needs a reset after a chain")
		}
	})
}
