package frame

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

var testNonce = Nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func TestRoundTrip(t *testing.T) {
	sizes := []int{0, 1, 2, 255, 4096, MaxPayload}
	tag := testNonce.Tag()
	wire := AppendHello(Padding(), testNonce)
	for i, n := range sizes {
		wire = Append(wire, tag, TypeStdin, bytes.Repeat([]byte{byte(i)}, n))
	}
	readers := map[string]io.Reader{
		"whole":  bytes.NewReader(wire),
		"bytes":  iotest.OneByteReader(bytes.NewReader(wire)),
		"halves": iotest.HalfReader(bytes.NewReader(wire)),
	}
	for name, src := range readers {
		t.Run(name, func(t *testing.T) {
			r := NewReader(src)
			f, err := r.Next()
			if err != nil || f.Type != TypeHello {
				t.Fatalf("first frame: %v, %v", f.Type, err)
			}
			if n, err := ParseHello(f.Payload); err != nil || n != testNonce {
				t.Fatalf("hello: %x, %v", n, err)
			}
			r.SetTag(tag)
			for i, n := range sizes {
				f, err := r.Next()
				if err != nil || f.Type != TypeStdin || !bytes.Equal(f.Payload, bytes.Repeat([]byte{byte(i)}, n)) {
					t.Fatalf("frame %d: type %v, %d bytes, %v", i, f.Type, len(f.Payload), err)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Fatalf("after the last frame: %v", err)
			}
		})
	}
}

func TestMalformed(t *testing.T) {
	tag := testNonce.Tag()
	good := Append(nil, tag, TypeStdin, []byte("abc"))
	change := func(i int, b byte) []byte {
		c := slices.Clone(good)
		c[i] = b
		return c
	}
	for name, wire := range map[string][]byte{
		"unknown type": change(0, 200),
		"marker":       change(1, 0),
		"length":       change(3, 0xff),
		"trailer":      change(len(good)-1, good[len(good)-1]+1),
		"other tag":    Append(nil, tag+2, TypeStdin, []byte("abc")),
		"zero tag":     Append(nil, 0, TypeStdin, nil),
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(wire))
			r.SetTag(tag)
			if _, err := r.Next(); !errors.Is(err, ErrFrame) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// TestResynchronise cuts a session off at every byte of a frame and expects
// the next session's hello to be found, and nothing of the fragment delivered.
func TestResynchronise(t *testing.T) {
	old := Append(nil, 0x07070707, TypeStdin, bytes.Repeat([]byte{0xee}, 300))
	for cut := range old {
		wire := append(slices.Clone(old[:cut]), AppendHello(Padding(), testNonce)...)
		r := NewReader(bytes.NewReader(wire))
		r.SetTag(0x07070707)
		f, err := r.Next()
		if errors.Is(err, ErrFrame) {
			var n Nonce
			if n, err = r.Hunt(nil); err != nil || n != testNonce {
				t.Fatalf("cut at %d: hunt: %x, %v", cut, n, err)
			}
			continue
		}
		if err != nil || f.Type != TypeHello {
			t.Fatalf("cut at %d: type %v, %v", cut, f.Type, err)
		}
	}
}

func TestHuntWanted(t *testing.T) {
	other := Nonce{9}
	wire := append(bytes.Repeat([]byte{1, 0xA5, 24}, 50), AppendHello(nil, other)...)
	wire = append(AppendHello(wire, testNonce), Append(nil, testNonce.Tag(), TypeExit, []byte{0, 3})...)
	r := NewReader(iotest.OneByteReader(bytes.NewReader(wire)))
	if n, err := r.Hunt(&testNonce); err != nil || n != testNonce {
		t.Fatalf("hunt: %x, %v", n, err)
	}
	r.SetTag(testNonce.Tag())
	if f, err := r.Next(); err != nil || f.Type != TypeExit {
		t.Fatalf("frame after the hello: %v, %v", f.Type, err)
	}
}

func TestRequestParts(t *testing.T) {
	tag := testNonce.Tag()
	long := Start{Args: []string{"x", string(bytes.Repeat([]byte{'a'}, 3*MaxClientPayload))}}
	wire, err := AppendRequest(nil, tag, TypeStart, long)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(bytes.NewReader(wire))
	r.SetTag(tag)
	parts := 0
	for {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == TypeStart {
			break
		}
		parts++
	}
	if parts != 3 {
		t.Errorf("%d parts", parts)
	}
	if _, err := AppendRequest(nil, tag, TypeStart, Start{Args: []string{string(make([]byte, MaxBody))}}); err == nil {
		t.Error("a body beyond MaxBody was accepted")
	}
}

func TestExit(t *testing.T) {
	for _, c := range []struct {
		exit Exit
		code int
	}{{Exit{Value: 0}, 0}, {Exit{Value: 255}, 255}, {Exit{Signaled: true, Value: 9}, 137}} {
		got, err := ParseExit(c.exit.Append(nil))
		if err != nil || got != c.exit || got.Code() != c.code {
			t.Errorf("%+v: got %+v, code %d, %v", c.exit, got, got.Code(), err)
		}
	}
	for _, bad := range [][]byte{nil, {0}, {2, 0}, {0, 0, 0}} {
		if _, err := ParseExit(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%x accepted", bad)
		}
	}
}

// FuzzReader feeds any bytes to both ways of reading: they end, with an error
// of the source or ErrFrame, and deliver only well-formed frames.
func FuzzReader(f *testing.F) {
	f.Add(AppendHello(Padding()[:64], testNonce))
	f.Add(Append(AppendHello(nil, testNonce), testNonce.Tag(), TypeStdout, []byte("hello")))
	f.Add([]byte{1, 0xA5, 24, 0, 'S', 'p', 'o', 'r', 'e', 'H', 's', '1'})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire))
		r.SetTag(testNonce.Tag())
		for {
			fr, err := r.Next()
			if errors.Is(err, ErrFrame) {
				n, err := r.Hunt(nil)
				if err != nil {
					return
				}
				r.SetTag(n.Tag())
				continue
			}
			if err != nil {
				if err != io.EOF {
					t.Fatalf("error %v", err)
				}
				return
			}
			if fr.Type == 0 || fr.Type >= typeEnd || len(fr.Payload) > MaxPayload {
				t.Fatalf("frame of type %d, %d bytes", fr.Type, len(fr.Payload))
			}
		}
	})
}
