package api

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"spore/internal/wire"
)

func TestLayout(t *testing.T) {
	if want := wire.Layout(Config{}, Request{}, Message{}); layout != want {
		t.Errorf("the types have changed: layout is %#x, want %#x", uint32(layout), want)
	}
}

func TestSendReceive(t *testing.T) {
	in := Request{ID: 7, Op: OpWake, Config: &Config{
		Version: Version, ID: "a", VCPUs: 2, Memory: MinMemory, Control: NoFile, Restore: &Restore{State: 1, Memory: 2, Hot: NoFile},
		Disks: []Disk{{File: 3, ID: "disk", ReadOnly: true}, {File: 4, Rate: Rate{OpsPerSecond: 5}}}, Net: &Net{MAC: MAC{2, 0, 0, 0, 0, 255}},
	}}
	var b bytes.Buffer
	if err := Send(&b, &in); err != nil {
		t.Fatal(err)
	}
	raw := bytes.Clone(b.Bytes())
	var out Request
	if err := Receive(&b, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%v, became %+v", err, out)
	}
	raw[4]++
	if err := Receive(bytes.NewReader(raw), &out); !errors.Is(err, wire.ErrValue) {
		t.Errorf("another layout: %v", err)
	}
}
