package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"
)

type element struct {
	Name string
	N    uint32
}

// everything has one of each kind that has a form.
type everything struct {
	Yes, No bool
	I       int
	I8      int8
	I64     int64
	U16     uint16
	U64     uint64
	Text    string
	Raw     []byte
	Array   [3]uint8
	List    []element
	Map     map[string]map[string]uint64
	There   *element
	Nothing *element
	hidden  int
}

func sample() everything {
	return everything{
		Yes: true, I: -5, I8: -128, I64: 1 << 62, U16: 65535, U64: 1<<64 - 1, Text: "täxt", Raw: []byte{0, 255}, Array: [3]uint8{1, 2, 3},
		List: []element{{"a", 1}, {"", 0}}, Map: map[string]map[string]uint64{"a": {"b": 1, "c": 2}, "d": nil}, There: &element{"x", 9},
	}
}

const testLayout = 42

func written(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteValue(&b, testLayout, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestValue(t *testing.T) {
	in := sample()
	raw := written(t, &in)
	var out everything
	if err := ReadValue(bytes.NewReader(raw), testLayout, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%v: %+v became %+v", err, in, out)
	}
	var zero everything
	if err := ReadValue(bytes.NewReader(written(t, &everything{Raw: []byte{}, List: []element{}, hidden: 1})), testLayout, &zero); err != nil || !reflect.DeepEqual(zero, everything{}) {
		t.Errorf("empty: %v, %+v", err, zero)
	}
}

// TestValueRefused cuts a frame off everywhere, and makes it lie.
func TestValueRefused(t *testing.T) {
	in := sample()
	raw := written(t, &in)
	read := func(body []byte) error {
		var out everything
		return ReadValue(bytes.NewReader(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)), testLayout, &out)
	}
	body := raw[4:]
	if err := read(body); err != nil {
		t.Fatal(err)
	}
	for n := range body {
		if err := read(body[:n]); !errors.Is(err, ErrValue) {
			t.Errorf("%d of %d bytes: %v", n, len(body), err)
		}
	}
	if err := read(append(bytes.Clone(body), 0)); !errors.Is(err, ErrValue) {
		t.Errorf("a byte more: %v", err)
	}
	other := bytes.Clone(body)
	other[0]++
	if err := read(other); !errors.Is(err, ErrValue) {
		t.Errorf("another layout: %v", err)
	}
	for _, test := range []struct {
		name string
		into any
		body []byte
	}{
		{"a number too large", new(uint8), []byte{128, 2}},
		{"a number without an end", new(uint64), []byte{128}},
		{"a bool that is neither", new(bool), []byte{2}},
		{"a list longer than the frame", new([]element), []byte{200, 1, 0, 0}},
		{"a text longer than the frame", new(string), []byte{255, 255, 255, 255, 15}},
		{"a map longer than the frame", new(map[string]uint8), []byte{2, 0, 0}},
		{"a kind without a form", new(float64), []byte{1}},
	} {
		body := append(binary.LittleEndian.AppendUint32(nil, testLayout), test.body...)
		frame := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
		if err := ReadValue(bytes.NewReader(frame), testLayout, test.into); !errors.Is(err, ErrValue) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestValueFrames(t *testing.T) {
	n := new(uint8)
	for name, test := range map[string]struct {
		raw  []byte
		want error
	}{
		"nothing":  {nil, io.EOF},
		"half":     {[]byte{9, 0}, io.ErrUnexpectedEOF},
		"no body":  {[]byte{9, 0, 0, 0}, io.ErrUnexpectedEOF},
		"too long": {[]byte{0, 0, 0, 1}, ErrTooLong},
	} {
		if err := ReadValue(bytes.NewReader(test.raw), testLayout, n); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	big := make([]byte, MaxFrame)
	if err := WriteValue(io.Discard, testLayout, &big); !errors.Is(err, ErrTooLong) {
		t.Errorf("a value that is too long: %v", err)
	}
	if err := WriteValue(io.Discard, testLayout, &struct{ F func() }{}); !errors.Is(err, ErrValue) {
		t.Errorf("a function: %v", err)
	}
}

func TestLayout(t *testing.T) {
	type same element
	if Layout(element{}) != Layout(same{}) {
		t.Error("a name of a type counts")
	}
	for name, other := range map[string]any{
		"order": struct {
			N    uint32
			Name string
		}{}, "name": struct {
			Name string
			M    uint32
		}{}, "kind": struct {
			Name string
			N    int32
		}{}, "more": struct {
			Name string
			N    uint32
			Q    bool
		}{},
	} {
		if Layout(element{}) == Layout(other) {
			t.Errorf("another %s does not count", name)
		}
	}
}

// FuzzValue holds that any frame is an error or a value that is written as one which is read the same.
func FuzzValue(f *testing.F) {
	in := sample()
	f.Add(written(f, &in)[4+layoutSize:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		body := append(binary.LittleEndian.AppendUint32(nil, testLayout), b...)
		var first, second everything
		if err := ReadValue(bytes.NewReader(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)), testLayout, &first); err != nil {
			return
		}
		if err := ReadValue(bytes.NewReader(written(t, &first)), testLayout, &second); err != nil || !reflect.DeepEqual(first, second) {
			t.Errorf("%v: %+v became %+v", err, first, second)
		}
	})
}
