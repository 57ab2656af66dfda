package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// frame builds a frame's bytes, well formed or not.
func frame(t FrameType, length uint32, payload string) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{byte(t)}, length), payload...)
}

func TestFramesComeBack(t *testing.T) {
	var b bytes.Buffer
	w, r := NewWriter(&b), NewReader(&b)
	long := bytes.Repeat([]byte("x"), 3*MaxStream+1)
	if n, err := w.Stream(FrameStdout).Write(long); n != len(long) || err != nil {
		t.Fatal(n, err)
	}
	if err := w.SendJSON(FrameStarted, Started{ID: 7}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for range 4 {
		kind, p, err := r.Next()
		if err != nil || kind != FrameStdout {
			t.Fatal(kind, err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, long) {
		t.Error("a stream changed on its way")
	}
	var s Started
	if err := r.Expect(FrameStarted, &s); err != nil || s.ID != 7 {
		t.Error(s, err)
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
}

func TestFrameBounds(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"type 0":              {frame(0, 0, ""), ErrFrame},
		"unknown type":        {frame(frameLimit, 0, ""), ErrFrame},
		"type 255":            {frame(255, 0, ""), ErrFrame},
		"negative length":     {frame(FrameExit, 0xffffffff, ""), ErrFrame},
		"2 GiB":               {frame(FrameStdout, 1<<31, ""), ErrFrame},
		"longer than message": {frame(FrameStdout, MaxMessage+1, ""), ErrFrame},
		"longer than request": {frame(FrameRequest, MaxPayload+1, ""), ErrFrame},
		"cut header":          {frame(FrameExit, 0, "")[:3], io.ErrUnexpectedEOF},
		"cut payload":         {frame(FrameExit, 9, "12345678"), io.ErrUnexpectedEOF},
		"no payload":          {frame(FrameExit, 9, ""), io.ErrUnexpectedEOF},
		"nothing":             {nil, io.EOF},
	} {
		_, _, err := NewReader(bytes.NewReader(c.bytes)).Next()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	w := NewWriter(io.Discard)
	if err := w.Send(FrameStdout, make([]byte, MaxMessage+1)); !errors.Is(err, ErrFrame) {
		t.Error("a frame nobody accepts was sent:", err)
	}
	if err := w.SendJSON(FrameRequest, Request{Path: strings.Repeat("x", MaxPayload)}); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
	if err := w.Send(FrameRequest, make([]byte, MaxPayload)); err != nil {
		t.Error(err)
	}
}

func TestExpect(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"other type":       {frame(FrameData, 0, ""), "type"},
		"no JSON":          {frame(FrameExit, 1, "{"), "malformed"},
		"failure":          {frame(FrameFailure, 21, `{"error":"no\x1b[2Jroom"}`)[:5+21], "malformed"},
		"failure, printed": {frame(FrameFailure, 15, `{"error":"a\tb"}`+" ")[:5+15], "malformed"},
		"failure in full":  {frame(FrameFailure, 16, `{"error":"a\tb"}`), "a?b"},
	} {
		err := NewReader(bytes.NewReader(c.bytes)).Expect(FrameExit, &Exit{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(frame(FrameHello, 2, "{}"))
	f.Add(append(frame(FrameStdout, 3, "abc"), frame(FrameExit, 10, `{"code":3}`)...))
	f.Add(frame(FrameRequest, MaxPayload, "x"))
	f.Add(frame(200, 0xffffffff, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, left := NewReader(bytes.NewReader(b)), len(b)
		for {
			kind, p, err := r.Next()
			if err != nil {
				return
			}
			if left -= headerSize + len(p); left < 0 || len(p) > kind.limit() {
				t.Fatalf("a frame of %d bytes of type %d", len(p), kind)
			}
			var again bytes.Buffer
			if err := NewWriter(&again).Send(kind, p); err != nil {
				t.Fatal(err)
			}
			for _, v := range []any{new(Hello), new(Setup), new(Request), new(Exit), new(Stats), new(Started)} {
				_ = decode(p, v) // must return
			}
		}
	})
}
