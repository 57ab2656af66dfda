package vmm

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"spore/internal/wire"
	"spore/virtio/mmio"
	"spore/virtio/queue"
)

func TestDeviceState(t *testing.T) {
	if want := wire.Layout(mmio.State{}); deviceLayout != want {
		t.Errorf("mmio.State has changed: keep the old type to be read, and set deviceLayout to %#x", want)
	}
	in := mmio.State{
		Type: 2, Status: 15, DriverFeatures: 1 << 32, QueueSel: 1, Interrupts: 1, Generation: 3,
		Queues: []queue.State{{Size: 256, Ready: true, Desc: 0x1000, Avail: 0x2000, Used: 0x3000, NextAvail: 65535}}, Device: json.RawMessage(`{"x":1}`),
	}
	plain, err := encodeDevice(in)
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"plain": plain, "JSON of version 1": old} {
		if out, err := decodeDevice(b); err != nil || !reflect.DeepEqual(in, out) {
			t.Errorf("%s: %v, became %+v", name, err, out)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "cut off": plain[:len(plain)-1], "more": append(plain[:len(plain):len(plain)], 0), "another form": {3}, "another layout": {2, 0, 0, 0, 0, 0},
		"JSON cut off": old[:9], "a field of nobody's": []byte(`{"queue":1}`),
	} {
		if _, err := decodeDevice(b); !errors.Is(err, mmio.ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
}
